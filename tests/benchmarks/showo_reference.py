"""The paper's released implementation, run from a checkout that nobody commits.

``https://github.com/xingzhejun/Mask-GRPO`` has no licence, so nothing of it is here: its own
modules are loaded from the checkout and its own functions called, unmodified. What is around them:

- ``models/__init__.py`` is passed by, since it imports CLIP and MAGVIT-v2 with packages that the
  iteration does not need; ``models/modeling_utils.py`` is a copy of an old diffusers and is
  replaced by the same three names of the installed one;
- ``PreTrainedModel``, base class of its Phi, is a bare ``nn.Module`` while Phi is defined: that of
  transformers 4.41 adds loading and saving, that of 5.x refuses the old constructor;
- the backbone's settings are those of transformers 4.41 with SDPA, which that version chooses;
- the script's loop is written out in ``Released.iteration`` as far as it computes. Accelerate,
  progress bars, gathering and logging are left out, which makes it faster, not slower; fp16
  autocast is left out because it does not run on a CPU, so both sides compute in float32;
- pixels and reward are the same functions on both sides.
"""

import ast
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SPECIAL = (
    "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>",
    "<|lvg|>",
)  # fmt: skip

Decode = Callable[[Tensor], Tensor]
Reward = Callable[[Tensor], Tensor]


class Settings(types.SimpleNamespace):
    """The nested settings that the script reads by attribute and by ``get``."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


class _Bare(nn.Module):
    """In the place of transformers' ``PreTrainedModel``: what the forward pass needs of it."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Weights are loaded, so none are drawn."""

    def resize_token_embeddings(self, size: int) -> None:
        assert size == self.config.vocab_size


@dataclass
class Records:
    """What a group's rollout leaves behind, in the script's lists: sample, step."""

    tokens: Tensor
    indices: list[list[Tensor]]
    codes: list[list[Tensor]]
    thresholds: list[list[Tensor]]
    masked: list[list[Tensor]]


class Released:
    """The released model and optimizer, and one iteration of the released script.

    Args:
        checkout: the folder that holds ``code/``.
        backbone: a ``PhiConfig`` with the sizes.
        state: of our network, whose keys are the published ones.
        tokenizer: of the text; special tokens are added to it.
        sizes: ``text``, ``codes``, ``num_tokens``, ``max_text``.
        group_size, steps: G and T.
        candidate: 1 for what it calls p1 (p2 in effect, by its boolean threshold), 2 for p2.
    """

    def __init__(
        self, checkout: Path, backbone: Any, state: dict[str, Tensor], tokenizer: Any,
        sizes: Any, group_size: int, steps: int, candidate: int,
    ):  # fmt: skip
        self._code = checkout / "code"
        self.module = _load_models(self._code)
        self.prompting = importlib.import_module("training.prompting_utils")
        script = _functions(self._code / "Mask_GRPO_train.py", self.prompting)
        self._preprocess, optimizer = script["token_preprocess"], script["get_optimizer"]
        self.uni = self.prompting.UniversalPrompting(
            tokenizer, max_text_len=sizes.max_text, special_tokens=SPECIAL, ignore_id=-100,
            cond_dropout_prob=0.1,
        )  # fmt: skip
        self.config = _settings(sizes, steps, group_size, candidate)
        self.module.AutoConfig = types.SimpleNamespace(
            from_pretrained=lambda _: _phi_settings(backbone)
        )
        self.model = self.module.Showo(
            w_clip_vit=False, vocab_size=backbone.vocab_size, llm_vocab_size=sizes.text,
            codebook_size=sizes.codes, num_vq_tokens=sizes.num_tokens,
        )  # fmt: skip
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not missing and not unexpected, (missing, unexpected)
        training = self.config.training
        self.optimizer = optimizer(
            self.model, weight_decay=training.weight_decay, learning_rate=training.learning_rate,
            betas=training.betas,
        )  # fmt: skip

    def rollout(self, prompt: str) -> Records:
        """A group, one sample after the other, as the script does."""
        found = Records(torch.empty(0), [], [], [], [])
        tokens = []
        with torch.inference_mode():
            self.model.eval()
            for _ in range(self.config.training.group_size):
                ids, unconditional, mask = self._inputs(prompt)
                one, indices, codes, thresholds, masked = self.model.t2i_generate_grpo(
                    input_ids=ids, uncond_input_ids=unconditional, attention_mask=mask,
                    **self._given(),
                )  # fmt: skip
                tokens.append(one)
                found.indices.append(indices)
                found.codes.append(codes)
                found.thresholds.append(thresholds)
                found.masked.append(masked)
            found.tokens = torch.cat(tokens, dim=0).detach()
            found.tokens = torch.clamp(found.tokens, max=self.config.codes - 1, min=0)
        return found

    def gradient(self, prompt: str, records: Records, advantage: Tensor, share: float) -> None:
        """Add the gradient of ``share`` times the sum of the losses of all steps."""
        self.model.train()
        ids, unconditional, mask = self._inputs(prompt)
        ids = ids.repeat(self.config.training.group_size, 1)
        for timestep in range(self.config.training.generation_timesteps):
            loss, ids = self.model.t2i_generate_grpo_loss(
                input_ids=ids, uncond_input_ids=unconditional, attention_mask=mask,
                selected_indices_list_list=records.indices, selected_ids_list_list=records.codes,
                timestep=timestep, group_reward=advantage.clone().detach(),
                min_probs_list_list=records.thresholds, masking_list_list=records.masked,
                **self._given(),
            )  # fmt: skip
            (loss * share).backward()

    def iteration(self, prompt: str, decode: Decode, reward: Reward, clock: Callable[[], float]):
        """Rollout, pixels, reward, update: the seconds of the first three and of the last."""
        start = clock()
        records = self.rollout(prompt)
        with torch.inference_mode():
            advantage = normalised(reward(decode(records.tokens)))
        middle = clock()
        # Accelerate divides by the steps once more, since it accumulates over them.
        self.gradient(prompt, records, advantage, 1 / self.config.training.generation_timesteps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return middle - start, clock() - middle

    def _inputs(self, prompt: str) -> tuple[Tensor, Tensor | None, Tensor]:
        blank = torch.full((1, self.config.num_tokens), self.model.config.mask_token_id)
        return self._preprocess([prompt], blank, self.uni, "cpu", self.config)

    def _given(self) -> dict[str, Any]:
        return {
            "guidance_scale": 0, "temperature": 1.0, "seq_len": self.config.num_tokens,
            "timesteps": self.config.training.generation_timesteps, "noise_type": "mask",
            "noise_schedule": self.module.cosine_schedule, "uni_prompting": self.uni,
            "config": self.config,
        }  # fmt: skip


def normalised(reward: Tensor) -> Tensor:
    """The script's advantage: unbiased deviation, 1e-4 added."""
    return (reward - reward.mean()) / (reward.std() + 1e-4)


def _load_models(code: Path) -> Any:
    """``models.modeling_showo`` of the checkout, without its package's imports."""
    import transformers.modeling_utils as transformers_models
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config

    if "models.modeling_showo" in sys.modules:
        return sys.modules["models.modeling_showo"]
    sys.path.insert(0, str(code))
    package = types.ModuleType("models")
    package.__path__ = [str(code / "models")]
    sys.modules["models"] = package
    replaced = types.ModuleType("models.modeling_utils")
    replaced.ConfigMixin, replaced.ModelMixin = ConfigMixin, ModelMixin
    replaced.register_to_config = register_to_config
    sys.modules["models.modeling_utils"] = replaced
    kept = transformers_models.PreTrainedModel
    transformers_models.PreTrainedModel = _Bare
    try:
        return importlib.import_module("models.modeling_showo")
    finally:
        transformers_models.PreTrainedModel = kept


def _functions(script: Path, prompting: Any) -> dict[str, Any]:
    """Functions of the script, whose other imports want packages that they do not use."""
    wanted = {"token_preprocess", "add_weight_decay", "get_optimizer"}
    tree = ast.parse(script.read_text())
    tree.body = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    mask = prompting.create_attention_mask_predict_next
    names: dict[str, Any] = {"torch": torch, "create_attention_mask_predict_next": mask}
    exec(compile(tree, str(script), "exec"), names)
    return names


def _phi_settings(backbone: Any) -> Any:
    """What transformers 4.41 has in its ``PhiConfig`` for Phi-1.5, with our sizes."""
    return Settings(
        vocab_size=backbone.vocab_size, hidden_size=backbone.hidden_size,
        intermediate_size=backbone.intermediate_size,
        num_hidden_layers=backbone.num_hidden_layers,
        num_attention_heads=backbone.num_attention_heads,
        num_key_value_heads=backbone.num_attention_heads, resid_pdrop=0.0, embd_pdrop=0.0,
        attention_dropout=0.0, hidden_act="gelu_new", max_position_embeddings=2048,
        initializer_range=0.02, layer_norm_eps=1e-5, use_cache=False, rope_theta=10000.0,
        rope_scaling=None, partial_rotary_factor=0.5, qk_layernorm=True, pad_token_id=None,
        output_attentions=False, output_hidden_states=False, use_return_dict=True,
        _attn_implementation="sdpa",
    )  # fmt: skip


def _settings(sizes: Any, steps: int, group_size: int, candidate: int) -> Settings:
    """The released YAML, with our sizes."""
    showo = Settings(
        vocab_size=sizes.text + sizes.codes + 11, llm_vocab_size=sizes.text,
        codebook_size=sizes.codes, num_vq_tokens=sizes.num_tokens, num_new_special_tokens=10,
    )  # fmt: skip
    training = Settings(
        kl_beta=0, full_compute=False, candidate=candidate, generation_timesteps=steps,
        group_size=group_size, guidance_scale=0, learning_rate=3e-6, weight_decay=0.02,
        betas=[0.9, 0.95], debug=False,
    )  # fmt: skip
    return Settings(
        model=Settings(showo=showo), training=training, codes=sizes.codes,
        num_tokens=sizes.num_tokens,
        dataset=Settings(preprocessing=Settings(max_seq_length=sizes.max_text)),
    )  # fmt: skip
