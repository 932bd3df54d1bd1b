"""Value heads of the digit policies: what they add, what they leave alone, and how they begin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core import Prompt, RecipeError, Trajectory, load_recipe
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.loop.settings import LoraConfig
from genrl_core.loop.views import StepsView
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.check import check_recipe
from genrl_core.registry import Registry
from genrl_core.run.assembly import build_trainer
from genrl_core.run.policies import _load

REGISTRY = Registry.discover()
PROMPTS = (Prompt("a", "a handwritten three"), Prompt("b", "eight"))
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "confidence": ("digits_masked", "confidence", {"num_inference_steps": 4}),
    "guided": ("digits_masked", "confidence", {"num_inference_steps": 3, "guidance_scale": 2.0}),
    "tokens": (
        "digits_masked", "confidence",
        {"num_inference_steps": 4, "transition": "p2", "granularity": "token"},
    ),
    "release": ("digits_masked", "random_release", {"num_inference_steps": 4}),
    "next_token": ("digits_autoregressive", "token", {}),
    "guided_token": ("digits_autoregressive", "token", {"guidance_scale": 2.0}),
    "flow": ("digits_diffusion", "flow_sde", {"num_inference_steps": 3, "noise": 0.7}),
    "guided_flow": (
        "digits_diffusion", "flow_sde",
        {"num_inference_steps": 3, "noise": 0.7, "guidance_scale": 2.0},
    ),
    "noise": ("digits_diffusion_vp", "ddim", {"num_inference_steps": 3, "eta": 1.0}),
}  # fmt: skip


def policy_of(name: str, *, moved: bool = True) -> Any:
    """A policy with a head, whose weights are random instead of 0 where ``moved``."""
    policy: Any = REGISTRY.policies[name].model_validate({"value_head": True}).build()
    if moved:
        noise = torch.Generator().manual_seed(1)
        torch.nn.init.normal_(policy.network.value_head.weight, std=0.1, generator=noise)
    return policy


def rows(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    calls, count = trajectory.terms.num_evals, len(trajectory)
    return torch.arange(calls).repeat_interleave(count), torch.arange(count).repeat(calls)


def rolled(name: str, **fields: Any) -> tuple[Any, Any, Trajectory, Tensor]:
    """A rollout with its recorded values, ``[R, M]``."""
    policy_name, sampler_name, own = CASES[name]
    policy = policy_of(policy_name)
    sampler = REGISTRY.samplers[sampler_name].model_validate(own | fields).build()
    trajectory, _ = generate(policy, sampler, plan_of(3, 0, 0, PROMPTS, 3), 6)
    recorded = trajectory.terms.value
    assert recorded is not None
    calls = trajectory.terms.num_evals
    return policy, sampler, trajectory, recorded.unflatten(0, (calls, -1)).mT.flatten(0, 1)


@pytest.mark.parametrize("name", CASES)
def test_recorded_values_are_those_that_are_scored(name: str) -> None:
    policy, sampler, trajectory, recorded = rolled(name)
    k, b = rows(trajectory)
    value = sampler.densities(policy, trajectory, k, b)[0].value()
    torch.testing.assert_close(value, recorded, rtol=0, atol=3e-5)
    assert float(recorded.std()) > 0.03
    (slope,) = torch.autograd.grad(value.sum(), policy.network.value_head.weight)
    assert slope.abs().max() > 0.1
    sizes = trajectory.terms.num_evals, recorded.shape[1]
    want = frozenset({"log_probs"})
    view = StepsView(policy, sampler, trajectory, WeightSets(policy), want, *sizes)
    assert view.evaluate(k, b).keys() == {"log_probs"}


@pytest.mark.parametrize("name", ["guided", "guided_token", "guided_flow"])
def test_guidance_leaves_the_values_of_the_prompted_side(name: str) -> None:
    """The states of a guided rollout have the values that they have without guidance."""
    policy, _, trajectory, recorded = rolled(name)
    _, sampler_name, own = CASES[name]
    plain = REGISTRY.samplers[sampler_name].model_validate(own | {"guidance_scale": 1.0}).build()
    value = plain.densities(policy, trajectory, *rows(trajectory))[0].value()
    torch.testing.assert_close(value, recorded, rtol=0, atol=3e-5)


def test_a_value_knows_what_was_read_and_nothing_that_follows() -> None:
    """Autoregressive: the value before token 5 depends on tokens 0 to 4 alone."""
    policy, sampler, trajectory, _ = rolled("next_token")
    before = sampler.densities(policy, trajectory, *rows(trajectory))[0].value()
    trajectory.trace["tokens"][:, 4] = (trajectory.trace["tokens"][:, 4] + 1) % 64
    after = sampler.densities(policy, trajectory, *rows(trajectory))[0].value()
    gap = (after - before).abs()
    assert gap[:, :5].max() == 0 and gap[:, 5:].amax(0).min() > 1e-3


@pytest.mark.parametrize("name", ["digits_masked", "digits_autoregressive", "digits_diffusion"])
def test_a_head_begins_at_zero_and_changes_nothing_else(name: str) -> None:
    with_head, without = policy_of(name, moved=False), REGISTRY.policies[name]().build()
    own = dict(with_head.network.named_parameters())
    head = {n for n in own if n.startswith("value_head.")}
    assert len(head) == 2 and all((own[n] == 0).all() for n in head)
    for key, tensor in without.network.named_parameters():
        assert torch.equal(own[key], tensor)
    assert own.keys() - head == dict(without.network.named_parameters()).keys()
    assert with_head.predicts_value and not without.predicts_value


def test_weights_without_a_head_are_taken_and_half_a_head_is_not() -> None:
    plain = REGISTRY.policies["digits_masked"]().build()
    base = {n: p.detach() + 1 for n, p in plain.network.named_parameters()}
    policy = policy_of("digits_masked")
    drawn = policy.network.value_head.weight.detach().clone()
    _load(policy.network, base, "base", policy.new_modules)
    assert torch.equal(policy.network.value_head.weight, drawn)
    assert torch.equal(policy.network.head.weight, base["head.weight"])
    half = base | {"value_head.bias": torch.zeros(1)}
    with pytest.raises(RecipeError, match=r"another network; 1 tensors differ.*value_head\.weight"):
        _load(policy.network, half, "half", policy.new_modules)
    del base["head.weight"]
    with pytest.raises(RecipeError, match=r"another network; 3 tensors differ"):
        _load(policy.network, base, "torn", policy.new_modules)
    whole = {n: p.detach() for n, p in policy.network.named_parameters()}
    with pytest.raises(RecipeError, match=r"value_head\.bias.*give the policy the same fields"):
        _load(plain.network, whole, "headed", plain.new_modules)


@pytest.mark.parametrize("name", ["digits_masked", "digits_autoregressive", "digits_diffusion"])
def test_beside_adapters_the_head_trains_in_full(name: str) -> None:
    policy = policy_of(name)
    weight_sets = WeightSets(policy, LoraConfig(rank=2))
    weight_sets.snapshot("reference")
    weight_sets.snapshot("lagging")
    for slot in ("current", "reference", "lagging", "current"):
        with weight_sets.using(slot):
            pass
        trained = {n for n, p in policy.network.named_parameters() if p.requires_grad}
        assert trained == weight_sets.trainable.keys()
    heads = {n for n in weight_sets.trainable if "lora" not in n}
    assert heads == {"value_head.weight", "value_head.bias"}
    assert all(".current." in n for n in weight_sets.trainable.keys() - heads)
    assert weight_sets.state_dict().keys() >= heads


@pytest.fixture
def ppo_recipe(tmp_path: Path) -> Callable[..., Any]:
    """A small run of PPO on digits, from initial weights."""

    def make(parent: str, *overrides: str) -> Any:
        small = ["policy.weights=null", "train.num_prompts=2", "train.num_generations=3"]
        chosen = [*small, f"run.name={tmp_path.name}", "train.iterations=2", *overrides]
        return load_recipe(parent, chosen, REGISTRY)

    return make


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["ppo", "mask_ppo", "diffusion_ppo"])
def test_ppo_trains_policy_and_head(ppo_recipe: Callable[..., Any], name: str, lora: bool) -> None:
    adapters = ["weights.lora={rank: 2}"] if lora else []
    recipe = ppo_recipe(f"digits/{name}", "objective.kl={weight: 0.1}", *adapters)
    trainer = build_trainer(recipe)
    before = {n: p.detach().clone() for n, p in trainer.weight_sets.trainable.items()}
    for _ in range(2):
        found = trainer.step().metrics
        assert found["skipped"] == 0 and found["drift"] < 1e-4 and found["value_error"] > 0
    moved = {n for n, p in trainer.weight_sets.trainable.items() if not torch.equal(p, before[n])}
    assert {"value_head.weight", "value_head.bias"} < moved


def test_ppo_without_a_head_hears_where_it_is() -> None:
    recipe = load_recipe("digits/mask_ppo", ["policy.value_head=false"], REGISTRY)
    with pytest.raises(RecipeError, match=r"ppo needs value, .* digits_masked with value_head: t"):
        check_recipe(recipe)
