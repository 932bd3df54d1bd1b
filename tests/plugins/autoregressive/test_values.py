"""The value head that a causal language model of transformers can get."""

import copy

import pytest
import torch
from torch import Tensor, nn

from genrl_autoregressive import CausalLmConfig, TokenConfig
from genrl_core import GenRLError, Prompt, select_rows
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of

from .conftest import NETWORKS, PROMPTS, SYMBOLS, IdsPolicy


def valued(kind: str) -> IdsPolicy:
    """A random tiny model in float64, whose samples end, with a random head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = NETWORKS[kind]().eval().double()
        policy = IdsPolicy(CausalLmConfig(value_head=True), network, SYMBOLS, (0,))
        nn.init.normal_(network.value_head.weight)
        nn.init.normal_(network.value_head.bias)
    return policy


def scores(policy: IdsPolicy, **fields: object) -> tuple[Tensor, Tensor, Tensor]:
    """Values as recorded and as scored, ``[B, T]`` each, and the terms' mask."""
    sampler = TokenConfig.model_validate({"max_new_tokens": 6} | fields).build()
    trajectory, _ = generate(policy, sampler, plan_of(2, 0, 0, PROMPTS, 4), 12)
    b = torch.arange(len(trajectory))
    value = sampler.densities(policy, trajectory, torch.zeros_like(b), b)[0].value()
    assert trajectory.terms.value is not None
    return trajectory.terms.value.T, value, trajectory.terms.mask.T


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_values_from_the_cache_are_those_of_one_call(kind: str, guidance: float) -> None:
    recorded, value, mask = scores(valued(kind), guidance_scale=guidance)
    torch.testing.assert_close(recorded, value, rtol=0, atol=1e-10)
    assert (value[~mask] == 0).all() and not mask.all()
    assert float(value[mask].detach().std()) > 0.1


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_value_is_linear_in_what_the_output_head_reads(kind: str) -> None:
    """By a hook on the untouched network's own head, row by row without padding."""
    policy = valued(kind)
    plain = copy.deepcopy(policy.network)
    plain.__class__ = type(NETWORKS[kind]())
    read: list[Tensor] = []
    plain.get_output_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0]))
    sampler = TokenConfig(max_new_tokens=6).build()
    trajectory, _ = generate(policy, sampler, plan_of(2, 0, 0, PROMPTS, 1), 3)
    assert trajectory.terms.value is not None
    for row, prompt in enumerate(PROMPTS):
        length = int(trajectory.final["length"][row])
        words = [int(word) for word in prompt.text.split()]
        ids = torch.tensor([words + trajectory.final["tokens"][row, : length - 1].tolist()])
        plain(input_ids=ids)
        exact = policy.network.value_head(read[-1])[0, -length:, 0]
        found = trajectory.terms.value[:length, row]
        torch.testing.assert_close(found, exact.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_head_renames_no_parameter_and_is_adapted_by_nothing(kind: str) -> None:
    policy, plain = valued(kind), IdsPolicy(CausalLmConfig(), NETWORKS[kind](), SYMBOLS, (0,))
    names = dict(policy.network.named_parameters()).keys()
    added = names - dict(plain.network.named_parameters()).keys()
    assert added == {"value_head.weight", "value_head.bias"}
    assert policy.lora_targets == plain.lora_targets
    assert policy.new_modules == ("value_head",) and plain.new_modules == ()
    assert copy.deepcopy(policy.network).value_head is not policy.network.value_head


def test_a_policy_that_predicts_values_must_say_which(make_table) -> None:
    policy = make_table()
    policy.predicts_value = True
    cond = policy.encode([Prompt("1", "1")])
    plan = plan_of(0, 0, 0, [Prompt("1", "1")], 2)
    with pytest.raises(GenRLError, match=r"TablePolicy sets predicts_value.*logits_and_values"):
        TokenConfig().build().rollout(policy, select_rows(cond, torch.zeros(2).long()), plan)
