"""The KL to the reference changes the gradient: every estimator, on a real policy per paradigm.

A KL without gradient, or against weights that are the current ones, is a known fault of published
code. The estimators' exact gradients are tested by enumeration in ``objectives/test_kl_table.py``
and ``objectives/test_expected_updates.py``; here they go through the digits' networks.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core import Policy, Prompt, Sampler
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.loop.weights import WeightSets
from genrl_core.registry import Registry
from genrl_core.testing import learner_for, rollout_of
from genrl_objectives import KlConfig, ReinforceConfig

REGISTRY = Registry.discover()
PROMPTS = (Prompt("3", "a handwritten three"), Prompt("1", "a drawn one"))
ESTIMATORS = ("k1", "k2", "k3", "unbiased", "analytic")
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits_masked": ("confidence", {"num_inference_steps": 3, "transition": "ar"}),
    "digits_diffusion": ("flow_sde", {"num_inference_steps": 3}),
    "digits_diffusion_vp": ("ddim", {"num_inference_steps": 3}),
    "digits_autoregressive": ("token", {}),
}
"""A sampler of every paradigm whose steps have a closed form of the KL."""


def parts(name: str) -> tuple[Policy, Sampler]:
    sampler, fields = SAMPLERS[name]
    return REGISTRY.policies[name]().build(), REGISTRY.samplers[sampler](**fields).build()


def push(policy: Policy, size: float) -> None:
    """Move the weights by noise of ``size`` times their own deviation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(size * (parameter.std(correction=0) + 1e-3) * noise)


def update(name: str, kl: dict[str, Any] | None, view: str = "steps", size: float = 0.1) -> Tensor:
    """The step of REINFORCE, with the KL beside it or without, all parameters in one vector.

    The samples are those of the current weights, which are ``size`` away from the reference.
    """
    policy, sampler = parts(name)
    weight_sets = WeightSets(policy)
    weight_sets.snapshot("reference")
    push(policy, size)
    plan = plan_of(2, 0, 0, PROMPTS, 3)
    trajectory, _ = generate(policy, sampler, plan, len(plan))
    rollout = rollout_of(trajectory, torch.tensor([1.0, 0, 2, 0, 1, 3]), plan.group)
    members = {"reinforce": (1.0, ReinforceConfig(view=view, reduce="token_mean").build())}
    if kl is not None:
        members["kl"] = (1.0, KlConfig(reduce="token_mean", **kl).build())
    learner = learner_for(policy, sampler, members, weight_sets, views=view)
    before = {n: p.detach().clone() for n, p in weight_sets.trainable.items()}
    _, problem = learner.learn(rollout, 0, 0)
    assert problem is None
    return torch.cat([(before[n] - p.detach()).flatten() for n, p in weight_sets.trainable.items()])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_estimator_changes_the_step(name: str) -> None:
    plain = update(name, None)
    found = {kind: update(name, {"estimator": kind}) - plain for kind in ESTIMATORS}
    for kind, change in found.items():
        assert change.norm() > 1e-3 * plain.norm(), kind
    for one, other in (("k1", "k2"), ("k2", "k3"), ("k3", "unbiased"), ("k2", "analytic")):
        assert (found[one] - found[other]).norm() > 1e-2 * found[other].norm(), (one, other)
    # Each of these has the gradient of some KL to the reference: they agree on the rough way.
    for kind in ("k2", "k3", "unbiased"):
        assert torch.cosine_similarity(found[kind], found["analytic"], 0) > 0, kind


@pytest.mark.parametrize("name", SAMPLERS)
def test_where_the_policy_is_the_reference_only_k1_pulls(name: str) -> None:
    """``k1`` is a log-ratio: its gradient is a score, which vanishes on average alone."""
    plain = update(name, None, size=0.0)
    for kind in ESTIMATORS:
        change = (update(name, {"estimator": kind}, size=0.0) - plain).norm() / plain.norm()
        assert change > 1e-2 if kind == "k1" else change < 1e-4, (kind, float(change))


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_the_bound_too(name: str) -> None:
    plain = update(name, None, view="elbo")
    for kind in ("k1", "k2", "k3", "unbiased"):
        change = update(name, {"estimator": kind}, view="elbo") - plain
        assert change.norm() > 1e-4 * plain.norm(), kind  # bounds are means: they differ less


def test_every_paradigm_with_a_closed_form_is_here() -> None:
    paradigms = {REGISTRY.policies[name].paradigm for name in SAMPLERS}
    assert paradigms == {schema.paradigm for schema in REGISTRY.policies.values()}
