"""Policies whose every prediction is known: the exact denoisers of Gaussian data."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from genrl_core import Media, Plan, Prompt, Tensors
from genrl_diffusion import (
    DiffusionPolicyConfig,
    ElboConfig,
    FlowPolicy,
    VariancePreservingPolicy,
)

LEVELS = 100


def alpha_bars(levels: int = LEVELS) -> Tensor:
    """A table that ends near pure noise: about 1e-5."""
    return (1 - torch.linspace(1e-3, 0.2, levels, dtype=torch.float64)).cumprod(0)


class Gaussian(nn.Module):
    """What is best to predict of ``alpha x0 + sigma eps`` when x0 ~ N(mean, deviation^2).

    Prompt p shifts the mean by p; prompt 0 is the empty one.
    """

    def __init__(self, mean: float, deviation: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.deviation = nn.Parameter(torch.tensor(deviation, dtype=torch.float64))

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, prompt: Tensor, kind: str) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 1))
        a, s, p = (v.to(x.dtype).view(shape) for v in (alpha, sigma, prompt))
        mean, variance = self.mean.to(x.dtype) + p, self.deviation.to(x.dtype).square()
        x0 = mean + a * variance / (a.square() * variance + s.square()) * (x - a * mean)
        noise = mean.neg() * a * s / (a.square() * variance + s.square())
        noise = noise + s * x / (a.square() * variance + s.square())
        return {
            "velocity": noise - x0, "v": a * noise - s * x0, "epsilon": noise, "sample": x0,
        }[kind]  # fmt: skip


class _Exact:
    calls: int = 0

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        return {"prompt": torch.tensor([int(prompt.id) for prompt in prompts])}

    def decode(self, final: Tensors) -> Media:
        grey = (64 * final["latents"].flatten(1) + 128).clamp(0, 255).to(torch.uint8)
        return Media("image", grey[:, None, None, :].expand(-1, 3, 1, -1))

    def unconditional(self, cond: Tensors) -> Tensors:
        return {"prompt": torch.zeros_like(cond["prompt"])}

    def predict(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        self.calls += 1
        return self.network(x, *self.alpha_sigma(time), cond["prompt"], self.prediction)


class ExactFlow(_Exact, FlowPolicy):
    def velocity(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        return self.predict(x, time, cond)


class ExactVariancePreserving(_Exact, VariancePreservingPolicy):
    pass


class GaussianConfig(DiffusionPolicyConfig):
    prediction: str = "velocity"
    shape: tuple[int, ...] = (2, 3)
    double: bool = True
    mean: float = 0.5
    deviation: float = 0.7

    def build(self):
        network = Gaussian(self.mean, self.deviation)
        network = network if self.double else network.float()
        if self.prediction == "velocity":
            return ExactFlow(self, network, self.shape)
        table = alpha_bars()
        return ExactVariancePreserving(self, network, self.shape, table, self.prediction)


@pytest.fixture
def make_policy() -> Callable[..., object]:
    """``make_policy(prediction="velocity", shape=(2, 3), double=True, **bound)``."""

    def make(prediction="velocity", shape=(2, 3), double=True, **bound):
        return GaussianConfig(
            prediction=prediction, shape=tuple(shape), double=double, elbo=ElboConfig(**bound)
        ).build()

    return make


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """``make_plan(samples, prompts=1, seed=0)``: prompt ids are 1, 2; ``samples`` of each."""

    def make(samples: int, prompts: int = 1, seed: int = 0) -> Plan:
        chosen = tuple(Prompt(str(index + 1), "a prompt") for index in range(prompts))
        group = torch.arange(prompts).repeat_interleave(samples)
        return Plan(seed, 0, 0, chosen, group, torch.arange(samples).repeat(prompts))

    return make


@pytest.fixture
def draw() -> Callable[..., object]:
    """``draw(config, policy, plan)``: the rollout of a plan."""

    def rollout(config, policy, plan):
        with torch.no_grad():
            cond = policy.encode(plan.sample_prompts())
            return config.build().rollout(policy, cond, plan)

    return rollout
