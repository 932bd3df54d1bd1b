"""The policy of aMUSEd: prompts through CLIP, codes through the transformer, pixels through VQ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from genrl_amused.attention import AmusedAttention
from genrl_amused.loading import load_parts
from genrl_amused.recompute import recompute_layers
from genrl_core import Media, Prompt, Reading, RecipeError, Tensors
from genrl_masked import MaskedPolicy
from genrl_models import attention_backend

if TYPE_CHECKING:
    from genrl_amused import AmusedConfig

DECODED_AT_ONCE = 8
"""Images; the decoder's activations take about a GiB for each of 512 pixels."""


class AmusedPolicy(MaskedPolicy):
    """Images of ``S x S`` codes, row by row; 256 codes of 256 pixels, 1,024 of 512 (16 x 16 each).

    ``cond`` holds what CLIP says about a prompt, ``hidden`` ``[B, L, E]`` (the last layer but one)
    and ``pooled`` ``[B, P]``, and the same about what guidance steers away from,
    ``negative_hidden`` and ``negative_pooled``: the prompt's negative text, or the empty one.
    ``final`` is ``tokens`` ``[B, N]`` int64.

    The network also hears the image's size, the crop (none) and an aesthetic score, as SDXL does.

    Deviations from diffusers' AmusedPipeline: it draws by its own scheduler, whose Gumbel factor
    falls from 2 at the first step to 0 at the last; the sampler ``confidence`` with
    ``gumbel_temperature: 2`` starts at ``2 (1 - 1/K)``, and is the same otherwise.

    Raises:
        RecipeError: nothing can be loaded from ``policy.weights``, or ``policy.base``; or the
            machine cannot meet ``policy.attention``.
    """

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, config: "AmusedConfig"):
        source = config.weights or config.base
        if source is None:
            raise RecipeError(f"policy.weights {config.weights_problem()}")
        dtype: torch.dtype = getattr(torch, config.dtype)
        attention_backend(config.attention, dtype)
        parts = load_parts(source, config.revision, dtype)
        parts.transformer.set_attn_processor(AmusedAttention(config.attention))
        if config.gradient_checkpointing:
            recompute_layers(parts.transformer.transformer_layers)
        self._side: int = parts.transformer.config.sample_size
        super().__init__(
            config, parts.transformer, self._side**2, parts.transformer.config.codebook_size
        )
        self.vqvae = parts.vqvae
        self.text_encoder = parts.text_encoder
        self.tokenizer = parts.tokenizer
        self.mask_id = parts.mask_id
        pixels = self._side * 2 ** (len(self.vqvae.config.block_out_channels) - 1)
        self._micro = (pixels, pixels, 0, 0, config.aesthetic_score)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        texts = [prompt.text for prompt in prompts] + [prompt.negative for prompt in prompts]
        hidden, pooled = self._embed(texts)
        own, negative = slice(len(prompts)), slice(len(prompts), None)
        return {
            "hidden": hidden[own], "pooled": pooled[own],
            "negative_hidden": hidden[negative], "negative_pooled": pooled[negative],
        }  # fmt: skip

    def reading(self, prompts: Sequence[Prompt]) -> Sequence[Reading]:
        """CLIP's tokens, the two around a text included; the rest is cut off."""
        parts: tuple[Literal["text", "negative"], ...] = ("text", "negative")
        return [
            Reading(
                [len(ids) for ids in self.tokenizer(
                    [getattr(prompt, part) for prompt in prompts], verbose=False
                ).input_ids],
                self.tokenizer.model_max_length, cut=True, part=part,
            )
            for part in parts
        ]  # fmt: skip

    def _embed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIP's view of texts, each looked at once: ``[B, L, E]`` and ``[B, P]``."""
        different = list(dict.fromkeys(texts))
        ids = self.tokenizer(
            different, return_tensors="pt", padding="max_length", truncation=True,
            max_length=self.tokenizer.model_max_length,
        ).input_ids  # fmt: skip
        device = self._device()
        found = self.text_encoder.to(device)(ids.to(device), output_hidden_states=True)
        rows = torch.tensor([different.index(text) for text in texts], device=device)
        return found.hidden_states[-2][rows], found.text_embeds[rows]

    def unconditional(self, cond: Tensors) -> Tensors:
        """The negative prompts, which are empty where none is given."""
        hidden, pooled = cond["negative_hidden"], cond["negative_pooled"]
        return {
            "hidden": hidden, "pooled": pooled,
            "negative_hidden": hidden, "negative_pooled": pooled,
        }  # fmt: skip

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        ids = canvas.masked_fill(canvas == self.mask_code, self.mask_id)
        dtype = next(self.network.parameters()).dtype
        logits: Tensor = self.network(
            ids.view(-1, self._side, self._side),
            encoder_hidden_states=cond["hidden"].to(dtype),
            pooled_text_emb=cond["pooled"].to(dtype),
            micro_conds=torch.tensor([self._micro], device=ids.device).expand(len(ids), -1),
        )
        logits = logits.flatten(2).transpose(1, 2)
        return logits if logits.dtype == torch.float64 else logits.float()

    @torch.no_grad()
    def decode(self, final: Tensors) -> Media:
        pixels = [self._pixels(tokens) for tokens in torch.split(final["tokens"], DECODED_AT_ONCE)]
        return Media("image", torch.cat(pixels))

    def _pixels(self, tokens: Tensor) -> Tensor:
        """``[B, N]`` codes to ``[B, 3, H, W]`` uint8."""
        vqvae = self.vqvae.to(tokens.device)
        shape = (len(tokens), self._side, self._side, vqvae.config.latent_channels)
        found: Tensor = vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample
        return (found.clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
