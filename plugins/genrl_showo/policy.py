"""The Show-o policy: text and image codes in, logits over the codes out, pixels by MAGVIT-v2."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from genrl_core import Media, Prompt, Reading, RecipeError, Tensors
from genrl_masked import MaskedPolicy
from genrl_showo.layout import framed, prompt_ids
from genrl_showo.magvit import MagvitV2, load_magvit
from genrl_showo.network import Prefix
from genrl_showo.weights import load_showo

if TYPE_CHECKING:
    from genrl_showo import ShowoConfig


class ShowoPolicy(MaskedPolicy):
    """Show-o (arXiv 2408.12528), as published or as trained by Mask-GRPO (arXiv 2510.13418).

    ``cond`` is ``prompt`` and ``negative``, each ``[B, 129]`` int64 ids; the latter is the prompt's
    negative text, or the empty prompt that Show-o was trained with. ``final`` is ``tokens``
    ``[B, N]`` int64. Show-o writes guidance as ``(1 + w) cond - w uncond``, so its w is
    ``sampler.guidance_scale - 1``.

    In a rollout the keys and values of the prompts are computed once; an update computes them anew,
    with gradient, once per prompt of a chunk.

    Raises:
        RecipeError: weights or tokenizers are missing, or do not fit each other.
    """

    picks_positions = True
    lora_targets = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")

    def __init__(self, config: "ShowoConfig"):
        network, self.text_tokenizer, num_tokens = load_showo(config)
        self.vocabulary = network.vocabulary
        super().__init__(config, network, num_tokens, self.vocabulary.codes)
        self.precision: torch.dtype = getattr(torch, config.precision)  # by its own autocast
        self.image_tokenizer = _image_tokenizer(config.image_tokenizer, self.vocabulary.codes)
        self.num_prompt_tokens = config.max_text_tokens + 1
        self._text_length = config.max_text_tokens
        self._images_per_decode = config.images_per_decode
        self._kept: tuple[Tensor, Prefix] | None = None
        self._keeps = False

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        return {
            "prompt": self._ids([prompt.text for prompt in prompts]),
            "negative": self._ids([prompt.negative for prompt in prompts]),
        }

    def _ids(self, texts: Sequence[str]) -> Tensor:
        rows = [prompt_ids(ids, self.vocabulary, self._text_length) for ids in self._words(texts)]
        return torch.tensor(rows, device=next(self.network.parameters()).device)

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        """Phi's ids of the texts alone."""
        filled = [text for text in texts if text]
        found = iter(
            self.text_tokenizer(filled, add_special_tokens=False, verbose=False)["input_ids"]
            if filled
            else ()
        )
        return [next(found) if text else [] for text in texts]

    def reading(self, prompts: Sequence[Prompt]) -> Sequence[Reading]:
        """The ids of a prompt with what frames it; the rest is cut off."""
        parts: tuple[Literal["text", "negative"], ...] = ("text", "negative")
        found = []
        for part in parts:
            rows = self._words([getattr(prompt, part) for prompt in prompts])
            lengths = [len(framed(row, self.vocabulary)) for row in rows]
            found.append(Reading(lengths, self._text_length + 1, cut=True, part=part))
        return found

    def unconditional(self, cond: Tensors) -> Tensors:
        """The negative prompts; silent, the empty one."""
        return {"prompt": cond["negative"], "negative": cond["negative"]}

    def mask_prompt(self, cond: Tensors, where: Tensor) -> Tensors:
        """A hidden token of the text is the mask; what frames the text stays."""
        prompt, ids = cond["prompt"], self.vocabulary
        words = (prompt < ids.text) & (prompt != ids.boundary)
        return {**cond, "prompt": prompt.masked_fill(where & words, ids.mask)}

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        return self._logits(canvas, cond, None)

    def logits_at(self, canvas: Tensor, cond: Tensors, positions: Tensor) -> Tensor:
        """The last layer and the head run at these positions alone."""
        return self._logits(canvas, cond, positions)

    def _logits(self, canvas: Tensor, cond: Tensors, positions: Tensor | None) -> Tensor:
        prompt, rows = torch.unique(cond["prompt"], dim=0, return_inverse=True)
        logits, prefix = self.network(canvas, prompt, rows, self._prefix_of(prompt), positions)
        if self._keeps and not torch.is_grad_enabled():
            self._kept = (prompt, prefix)
        found: Tensor = logits if logits.dtype == torch.float64 else logits.float()
        return found

    @contextmanager
    def prefill(self, cond: Tensors) -> Iterator[None]:  # noqa: ARG002  # the first call sees it
        """Keys and values of the prompts are kept from the first call of a rollout to its end."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    def _prefix_of(self, prompt: Tensor) -> Prefix | None:
        """The prefix of these prompts, if it is known and no gradient is wanted."""
        if self._kept is None or torch.is_grad_enabled():
            return None
        known, prefix = self._kept
        return prefix if known.shape == prompt.shape and torch.equal(known, prompt) else None

    def decode(self, final: Tensors) -> Media:
        tokenizer = self.image_tokenizer.to(final["tokens"].device)
        shown = tokenizer.decode(final["tokens"], chunk=self._images_per_decode)
        return Media("image", (shown * 255).round().to(torch.uint8).cpu())


def _image_tokenizer(source: str, codes: int) -> MagvitV2:
    """MAGVIT-v2 with as many codes as the network has.

    Raises:
        RecipeError: it has another number: its images would be of other codes than were drawn.
    """
    found = load_magvit(source, field="policy.image_tokenizer")
    if found.layout.codes != codes:
        raise RecipeError(
            f"policy.image_tokenizer: {source} has {found.layout.codes} codes, and policy.weights "
            f"draws from {codes}: name the tokenizer that the weights were trained with "
            "(showlab/magvitv2 for Show-o)"
        )
    return found
