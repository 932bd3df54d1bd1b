"""How networks of transformers are read: as a plain call reads one row, or they are refused."""

from inspect import Parameter, Signature, signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.utils import ModelOutput

from genrl_autoregressive import CausalLmConfig, TokenConfig
from genrl_core import GenRLError
from genrl_core.collect import draw
from genrl_core.plan import plan_of

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
    trajectory, _ = draw(policy, sampler, plan_of(2, 0, 0, PROMPTS, 1), len(PROMPTS))
    gaps = []
    for row, prompt in enumerate(PROMPTS):
        tokens = trajectory.final["tokens"][row, : int(trajectory.final["length"][row])]
        words = [int(word) for word in prompt.text.split()]
        logits = network(input_ids=torch.tensor([words + tokens.tolist()])).logits
        exact = logits[0, len(words) - 1 : -1, :SYMBOLS].log_softmax(-1)
        exact = exact.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        gaps.append(trajectory.terms.log_probs[: len(tokens), row] - exact.detach())
    return float(torch.cat(gaps).abs().max())


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
