"""A policy small enough to enumerate: one logit per (prompt, canvas, position, code)."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from genrl_core import Media, Plan, Prompt, Streams, Tensors
from genrl_masked import ConfidenceConfig, ElboConfig, MaskedPolicy, MaskedPolicyConfig

NUM_PROMPTS = 3


class Table(nn.Module):
    """Free logits for every canvas of N positions and V codes: ``[P, (V + 1)^N, N, V]``."""

    def __init__(self, num_tokens: int, codebook_size: int, scale: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (NUM_PROMPTS, (codebook_size + 1) ** num_tokens, num_tokens, codebook_size)
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        self.logits = nn.Parameter(scale * noise)
        self.base = codebook_size + 1

    def forward(self, canvas: Tensor, prompt: Tensor) -> Tensor:
        place = self.base ** torch.arange(canvas.shape[1])
        return self.logits[prompt, (canvas * place).sum(-1)]


class TablePolicy(MaskedPolicy):
    """Prompt 0 is the empty one."""

    network: Table
    calls: int = 0

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        return {"prompt": torch.tensor([int(prompt.id) for prompt in prompts])}

    def decode(self, final: Tensors) -> Media:
        pixels = final["tokens"][:, None, None, :].expand(-1, 3, 1, -1)
        return Media("image", pixels.to(torch.uint8))

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        self.calls += 1
        return self.network(canvas, cond["prompt"])

    def unconditional(self, cond: Tensors) -> Tensors:
        return {"prompt": torch.zeros_like(cond["prompt"])}


class TableConfig(MaskedPolicyConfig):
    num_tokens: int = 3
    codebook_size: int = 3
    scale: float = 1.0
    seed: int = 0

    def build(self) -> TablePolicy:
        network = Table(self.num_tokens, self.codebook_size, self.scale, self.seed)
        return TablePolicy(self, network, self.num_tokens, self.codebook_size)


@pytest.fixture
def make_policy() -> Callable[..., TablePolicy]:
    """``make_policy(num_tokens=3, codebook_size=3, scale=1.0, seed=0, **bound)``."""

    def make(num_tokens=3, codebook_size=3, scale=1.0, seed=0, **bound) -> TablePolicy:
        return TableConfig(
            num_tokens=num_tokens, codebook_size=codebook_size, scale=scale, seed=seed,
            elbo=ElboConfig(**bound),
        ).build()  # fmt: skip

    return make


@pytest.fixture
def make_sampler() -> Callable[..., object]:
    """``make_sampler(num_inference_steps=2, **fields)``."""

    def make(num_inference_steps=2, **fields):
        return ConfidenceConfig(num_inference_steps=num_inference_steps, **fields).build()

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
    """``draw(sampler, policy, plan)``: the rollout of a plan."""

    def rollout(sampler, policy, plan):
        with torch.no_grad():
            return sampler.rollout(policy, policy.encode(plan.sample_prompts()), plan)

    return rollout


class FixedNoise(Streams):
    """Streams whose Gumbel noise is given: ``[N]``, the same for every sample."""

    noise: Tensor

    def gumbel(self, *shape: int) -> Tensor:
        return self.noise.expand(len(self), *shape)


@pytest.fixture
def fixed_noise() -> Callable[[Tensor, int], Streams]:
    def make(noise: Tensor, samples: int) -> Streams:
        keys = [f"fixed/{sample}" for sample in range(samples)]
        streams = FixedNoise(keys, keys)
        streams.noise = noise
        return streams

    return make


def step_outcomes(
    probabilities: list[list[float]], masked: list[int], count: int, noise: list[float]
) -> Iterator[tuple[float, dict[int, int], frozenset[int]]]:
    """Every vector of codes at the masked positions: its probability, itself, what is released.

    Plain Python on purpose: it shares no line with what it checks. ``noise`` is tau times Gumbel.
    """
    for codes in itertools.product(range(len(probabilities[0])), repeat=len(masked)):
        drawn = dict(zip(masked, codes, strict=True))
        weight, keys = 1.0, {}
        for position, code in drawn.items():
            weight *= probabilities[position][code]
            keys[position] = float(torch.tensor(probabilities[position][code]).log())
            keys[position] += noise[position]
        ranked = sorted(masked, key=lambda position: -keys[position])
        yield weight, drawn, frozenset(ranked[:count])


@pytest.fixture
def outcomes() -> Callable[..., Iterator[tuple[float, dict[int, int], frozenset[int]]]]:
    return step_outcomes
