"""The Show-o policy: text and image codes in, logits over the codes out, pixels by MAGVIT-v2."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from genrl_core import Media, Prompt, Reading, RecipeError, Tensors
from genrl_masked import MaskedPolicy
from genrl_showo.layout import framed, prompt_ids
from genrl_showo.magvit import MagvitV2, load_magvit
from genrl_showo.network import Prefix, ShowoNetwork
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
        self._memory = PrefixMemory()

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        self._memory.forget()  # a rollout begins, whatever was done to the weights since the last
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
        network = cast(ShowoNetwork, self.network)
        prompt, rows = torch.unique(cond["prompt"], dim=0, return_inverse=True)
        known = self._memory.recall(network, prompt)
        logits, prefix = self.network(canvas, prompt, rows, known, positions)
        self._memory.keep(network, prompt, prefix)
        found: Tensor = logits if logits.dtype == torch.float64 else logits.float()
        return found

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


class PrefixMemory:
    """What was last read of the prompts, while neither they nor the weights change.

    It serves calls without gradient alone, which a rollout makes. A call with gradient empties it,
    since activations want the memory, and so does a step of any optimizer: a fused one writes
    parameters without counting it, so that ``_state_of`` alone would not see it.
    """

    def __init__(self) -> None:
        self.forget()
        own = weakref.ref(self)

        def stepped(*_: object) -> None:
            if (memory := own()) is not None:
                memory.forget()

        hook = register_optimizer_step_post_hook(stepped)
        weakref.finalize(self, hook.remove)

    def forget(self) -> None:
        """Hold nothing."""
        self._prompt: Tensor | None = None
        self._prefix: Prefix | None = None
        self._weights: tuple[object, ...] = ()

    def recall(self, network: nn.Module, prompt: Tensor) -> Prefix | None:
        """The prefix of these prompts under the present weights, if it is known."""
        if torch.is_grad_enabled() or self._prompt is None:
            return None
        same = self._prompt.shape == prompt.shape and torch.equal(self._prompt, prompt)
        return self._prefix if same and self._weights == _state_of(network) else None

    def keep(self, network: nn.Module, prompt: Tensor, prefix: Prefix) -> None:
        """Remember the prefix, or forget all where gradients are wanted."""
        if torch.is_grad_enabled():
            self.forget()
        else:
            self._prompt, self._prefix, self._weights = prompt, prefix, _state_of(network)


def _state_of(network: nn.Module) -> tuple[object, ...]:
    """Equal for equal weights: where each parameter lies, how often it was written, which adapters.

    Peft switches adapters without touching a parameter; its layers say which are active.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    written = ((p.data_ptr(), p._version) for p in network.parameters())  # noqa: SLF001  # no other way
    adapters = (
        (module.disable_adapters, *module.active_adapters)
        for module in network.modules()
        if isinstance(module, BaseTunerLayer)
    )
    return (*written, *adapters)
