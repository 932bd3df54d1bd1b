"""What rewards with a network have in common: frozen, in float32, in chunks, each text once."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from genrl_core import Media, Prompt, Reward, Tensors, take
from genrl_rewards.images import Fit, cropped, normalised, pictures


class NetworkReward(Reward):
    """Judges images by a network that is never trained.

    A chunk of ``batch_size`` images passes through the network at a time, which changes no value
    beyond rounding. A prompt that several images share is encoded once.

    Args:
        network: put into evaluation mode, float32, without gradients.
        tokenizer: for the prompts; None where the reward does not read them.
        batch_size: images, and texts, that pass through the network at a time.
        side: of the squares that the network takes, in pixels.
        fit: how an image becomes such a square.
        max_tokens: what a prompt is cut off at, special tokens included.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Any, *, batch_size: int, side: int,
        max_tokens: int = 0, fit: Fit = cropped,
    ):  # fmt: skip
        self.network = network.float().eval().requires_grad_(requires_grad=False)
        self._tokenizer = tokenizer
        self._batch_size, self._side, self._fit = batch_size, side, fit
        self._max_tokens = max_tokens

    def to(self, device: torch.device) -> None:
        self.network.to(device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensors:
        """What ``score`` needs to know of the texts, each row one of ``texts``."""

    @abstractmethod
    def score(self, pixels: Tensor, encoded: Tensors) -> Tensor:
        """``[b]`` from pixels ``[b, 3, side, side]`` and the encoded text of each."""

    @torch.no_grad()
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        images = pictures(media, type(self).__name__)
        if not images:
            return []
        places = {text: row for row, text in enumerate(dict.fromkeys(p.text for p in prompts))}
        encoded = self.encode(list(places))
        # Strict, since one row too few would be broadcast over a chunk without a word.
        pairs = zip(images, prompts, strict=True)
        rows = torch.tensor([places[prompt.text] for _, prompt in pairs])
        found = [
            self.score(self._pixels(images[part]), take(encoded, rows[part]))
            for part in self.chunks(len(images))
        ]
        return torch.cat(found).tolist()

    def chunks(self, count: int) -> Iterator[slice]:
        """``count`` rows in parts of the batch size."""
        for start in range(0, count, self._batch_size):
            yield slice(start, start + self._batch_size)

    def tokens(self, texts: Sequence[str]) -> Tensors:
        """``ids`` and ``mask``, ``[b, L]`` int64, cut off at ``max_tokens``, padded alike."""
        given = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens,
            return_tensors="pt",
        )  # fmt: skip
        ids, mask = given["input_ids"], given["attention_mask"]
        return {"ids": ids.to(self.device), "mask": mask.to(self.device)}

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return normalised(images, self._side, self._fit).to(self.device)
