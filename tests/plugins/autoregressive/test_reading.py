"""How networks of transformers are read: as a plain call reads one row, or they are refused."""

from inspect import Parameter, Signature, signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel
from transformers.utils import ModelOutput

from genrl_autoregressive import CausalLmConfig, TokenConfig
from genrl_core import GenRLError
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of

from .conftest import NETWORKS, PROMPTS, SYMBOLS, IdsPolicy

CACHES = ("cache", "past_key_values")
INSTALLED = next(name for name in CACHES if name in signature(GPT2LMHeadModel.forward).parameters)


def gpt2(
    name: str = INSTALLED, *, keywords: bool = False, forgets: bool = False, looks: bool = False
) -> nn.Module:
    """A tiny random GPT-2 in float64 that calls its cache ``name``, as versions of transformers do.

    Args:
        name: of the argument and of the field of the output.
        keywords: takes it by ``**kwargs`` alone.
        forgets: takes it and does not read it.
        looks: takes a mask and does not read it, so that padding is looked at.
    """

    def forward(self: Any, input_ids: Tensor | None = None, **given: Any) -> ModelOutput:
        past = given.pop(name, None)
        given |= {INSTALLED: None if forgets or keywords else past}
        if (mask := given.pop("attention_mask", None)) is not None and not forgets:
            given |= {"attention_mask": torch.ones_like(mask) if looks else mask}
        found = GPT2LMHeadModel.forward(self, input_ids, **given)
        return ModelOutput(logits=found.logits, **{name: found.get(INSTALLED)})

    asked = ["self", "input_ids", "attention_mask", "position_ids", "use_cache"]
    asked += [] if keywords else [name]
    forward.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(one, Parameter.POSITIONAL_OR_KEYWORD) for one in asked]
        + [Parameter("given", Parameter.VAR_KEYWORD)]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = NETWORKS["gpt2"]().eval().double()
    network.__class__ = type("Renamed", (GPT2LMHeadModel,), {"forward": forward})
    return network


def made(kind: str, **fields: Any) -> nn.Module:
    """A tiny random model of transformers, in float64."""
    settings = AutoConfig.for_model(
        kind, vocab_size=12, bos_token_id=1, eos_token_id=0, pad_token_id=0, **fields
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(settings).eval().double()


def refusal(network: nn.Module) -> str:
    """What is said when a policy is made of it; empty where it is taken."""
    try:
        IdsPolicy(CausalLmConfig(), network, SYMBOLS, (0,))
    except GenRLError as error:
        return str(error)
    return ""


def gap(network: nn.Module) -> float:
    """Recorded log-probs against those of one plain call of each row alone, in nats."""
    policy = IdsPolicy(CausalLmConfig(), network, SYMBOLS, (0,))
    sampler = TokenConfig(max_new_tokens=6).build()
    trajectory, _ = generate(policy, sampler, plan_of(2, 0, 0, PROMPTS, 1), len(PROMPTS))
    gaps = []
    for row, prompt in enumerate(PROMPTS):
        tokens = trajectory.final["tokens"][row, : int(trajectory.final["length"][row])]
        words = [int(word) for word in prompt.text.split()]
        logits = network(input_ids=torch.tensor([words + tokens.tolist()])).logits
        exact = logits[0, len(words) - 1 : -1, :SYMBOLS].log_softmax(-1)
        exact = exact.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        gaps.append(trajectory.terms.log_probs[: len(tokens), row] - exact.detach())
    return float(torch.cat(gaps).abs().max())


def ending(network: nn.Module) -> str:
    """``exact``, ``wrong``, the sentence of a refusal, or the name of another exception."""
    try:
        return "exact" if gap(network) < 1e-6 else "wrong"
    except GenRLError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001  # what is told apart here
        return type(error).__name__


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_of_either_name_is_used(name: str) -> None:
    assert gap(gpt2(name)) < 1e-12


def test_a_network_that_ignores_its_cache_is_refused() -> None:
    said = refusal(gpt2(forgets=True))
    assert "Renamed reads a token otherwise behind the cache that it is handed" in said
    assert "Choose another model" in said


def test_taking_any_keyword_is_not_taking_a_cache() -> None:
    assert "takes no argument cache or past_key_values" in refusal(gpt2(keywords=True))


def test_a_network_that_looks_at_padding_is_refused() -> None:
    assert "a padded batch otherwise than each of its rows alone" in refusal(gpt2(looks=True))


def test_a_sound_network_is_taken_in_training_mode_too() -> None:
    with torch.random.fork_rng(devices=[]):
        network = NETWORKS["gpt2"]().train()  # with dropout
    assert refusal(network) == "" and network.training


WIDE = {"hidden_size": 16, "num_hidden_layers": 2}
OTHERS = {
    "mamba": WIDE | {"state_size": 4},
    "mamba2": WIDE | {"num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1},
    "recurrent_gemma": WIDE | {
        "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "lru_width": 16,
        "attention_window_size": 8,
    },
    "rwkv": WIDE | {"attention_hidden_size": 16, "intermediate_size": 16, "context_length": 32},
    "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16},
    "bert": WIDE | {"num_attention_heads": 2, "intermediate_size": 16},  # not causal
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_network_that_keeps_something_else_is_exact_or_refused(kind: str) -> None:
    network = made(kind, **OTHERS[kind])
    found = ending(network)
    assert found == "exact" or found.startswith("refused: policy.weights: "), found
    assert found == "exact" or type(network).__name__ in found
    assert (found == "exact") == (kind == "mamba2")


PHI = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.4,
}  # fmt: skip


def longrope(original: int) -> nn.Module:
    """A Phi-3 whose frequencies are other ones where a row of the call is longer than this."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
        "long_factor": [4.0, 6.0, 8.0, 16.0], "original_max_position_embeddings": original,
    }  # fmt: skip
    return made("phi3", **PHI, rope_parameters=rope, original_max_position_embeddings=original)


def test_frequencies_of_the_longest_row_are_exact_within_the_original_length() -> None:
    assert gap(longrope(12)) < 1e-10
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    fields = PHI | {"max_position_embeddings": 12, "rope_parameters": dynamic}
    assert gap(made("llama", **fields)) < 1e-10


def test_frequencies_of_the_longest_row_are_refused_beyond_it() -> None:
    """Where they turn for one row, they turn for the shorter ones beside it."""
    found = ending(longrope(6))
    assert found.startswith("refused: "), found
    assert "more than the 6 positions" in found and "longrope" in found
