"""What rewards with a network have in common: frozen, in float32, in chunks, each text once."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from genrl_core import Media, Prompt, Reading, Reward, Tensors, select_rows
from genrl_rewards.images import Fit, cropped, normalised, pictures

_log = logging.getLogger("genrl_rewards")


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
        max_tokens: what a prompt is cut off at, special tokens included; a longer one is named,
            by ``reading`` before a run or else by a warning when it is met.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Any, *, batch_size: int, side: int,
        max_tokens: int = 0, fit: Fit = cropped,
    ):  # fmt: skip
        self.network = network.float().eval().requires_grad_(requires_grad=False)
        self._tokenizer = tokenizer
        self._batch_size, self._side, self._fit = batch_size, side, fit
        self._max_tokens = max_tokens
        self._told: set[str] = set()

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
            self.score(self._pixels(images[part]), select_rows(encoded, rows[part]))
            for part in self.chunks(len(images))
        ]
        return torch.cat(found).tolist()

    def chunks(self, count: int) -> Iterator[slice]:
        """``count`` rows in parts of the batch size."""
        for start in range(0, count, self._batch_size):
            yield slice(start, start + self._batch_size)

    def reading(self, prompts: Sequence[Prompt]) -> Sequence[Reading]:
        """The tokens of the prompts; what is beyond ``max_tokens`` is cut off."""
        if self._tokenizer is None:
            return ()
        texts = [prompt.text for prompt in prompts]
        lengths = self._lengths(texts)
        pairs = zip(texts, lengths, strict=True)
        self._told |= {text for text, length in pairs if length > self._max_tokens}
        return [Reading(lengths, self._max_tokens, cut=True)]

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        rows = self._tokenizer(list(texts), verbose=False)["input_ids"]
        return [len(row) for row in rows]

    def _tell(self, texts: Sequence[str]) -> None:
        """Name what was cut off, unless somebody has asked before: each text once."""
        fresh = [text for text in texts if text not in self._told]
        pairs = zip(fresh, self._lengths(fresh) if fresh else (), strict=True)
        cut = {text: length for text, length in pairs if length > self._max_tokens}
        if cut:
            longest = max(cut, key=lambda text: cut[text])
            _log.warning(
                "%s reads the first %s tokens of a prompt and cuts off the rest: %s are longer, "
                "one of them by %s tokens, which ends in %r",
                type(self).__name__, self._max_tokens, len(cut),
                cut[longest] - self._max_tokens, longest[-60:],
            )  # fmt: skip
            self._told |= cut.keys()

    def tokens(self, texts: Sequence[str]) -> Tensors:
        """``ids`` and ``mask``, ``[b, L]`` int64, cut off at ``max_tokens``, padded alike."""
        given = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens,
            return_tensors="pt",
        )  # fmt: skip
        ids, mask = given["input_ids"], given["attention_mask"]
        filled = (mask.sum(1) == self._max_tokens).tolist()
        self._tell([text for text, full in zip(texts, filled, strict=True) if full])
        return {"ids": ids.to(self.device), "mask": mask.to(self.device)}

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return normalised(images, self._side, self._fit).to(self.device)
