"""Enumerable toy policies: small enough to sum over every trajectory, one of each kind of step.

``toy_sequence`` draws two symbols one after the other and scores both in one call (K 1, M 2).
``toy_canvas`` fills three positions in a random order, one per call (K 3, M 1).
``toy_gaussian`` takes two Gaussian steps on a line (K 2, M 1); quadrature takes the sum's place.

All parameters are float64 tables that start from a fixed formula. ``toy_reward`` judges any of
them. The module is a plugin: ``Registry.discover(modules=[enumerable])`` makes the names
usable in recipes.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genrl_core.hookspecs import hookimpl
from genrl_core.interfaces.capability import Capability
from genrl_core.interfaces.configs import PolicyConfig, RewardConfig, SamplerConfig, ValueHeadConfig
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import (
    Denoising,
    Plan,
    Tensors,
    Terms,
    Trajectory,
)
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import MarkovSampler, Sampler, Transition
from genrl_core.interfaces.streams import Streams

SYMBOLS = 3
POSITIONS = 3
STEPS = 2
DEVIATION = 0.6


class Table(nn.Module):
    """A table of numbers that is looked up by state: the whole network of a toy.

    With ``valued`` every state has a value too, an expected reward, in a table of its own.
    """

    def __init__(self, *shape: int, phase: float, valued: bool = False):
        super().__init__()
        count = math.prod(shape)
        start = torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 1.7 + phase)
        self.table = nn.Parameter(start.reshape(shape))
        self.value = nn.Parameter(start[: shape[0]].cos()) if valued else None

    def forward(self, state: Tensor, *, value: bool = False) -> Tensor:
        """``[R]`` int64 to ``[R, ...]``, or to the values ``[R]``."""
        found = self.value if value else self.table
        assert found is not None, "this table has no values"
        return found[state]


def draw_symbol(log_p: Tensor, uniform: Tensor) -> Tensor:
    """One symbol per row by inverse CDF: ``[R, V]`` and ``[R]`` to ``[R]``."""
    cumulative = log_p.exp().cumsum(-1)
    found = (cumulative < uniform.to(cumulative).unsqueeze(-1) * cumulative[..., -1:]).sum(-1)
    return found.clamp(max=log_p.shape[-1] - 1)


class _ToyPolicy(Policy):
    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        return {"length": torch.tensor([len(prompt.text) for prompt in prompts])}

    def decode(self, final: Tensors) -> Media:
        (values,) = final.values()
        return Media("text", texts=tuple(" ".join(map(repr, row)) for row in values.tolist()))


class ToySequence(_ToyPolicy):
    """Two symbols; the second depends on the first. State 0 begins, state 1 + a follows a."""

    def __init__(self, *, valued: bool = False) -> None:
        self.predicts_value = valued
        self.network = Table(1 + SYMBOLS, SYMBOLS, phase=0.0, valued=valued)

    def log_probs(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of both symbols, and of all: ``[R, 2]``, ``[R, 2, V]``."""
        states = self._states(tokens)
        log_p = self.network(states.flatten()).log_softmax(-1).unflatten(0, (-1, 2))
        return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), log_p

    def values(self, tokens: Tensor) -> Tensor:
        """The predicted reward before each of both symbols: ``[R, 2]``."""
        found: Tensor = self.network(self._states(tokens).flatten(), value=True)
        return found.view(-1, 2)

    def _states(self, tokens: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(tokens[:, 0]), 1 + tokens[:, 0]], 1)

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        """The exact likelihood needs no corruption, only how many symbols it sums over."""
        return {"events": torch.full((draws, len(streams), 1), 2)}

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:
        return self.log_probs(final["tokens"])[0].sum(1, keepdim=True)


class ToySequenceSampler(Sampler):
    """Draws two symbols; scores both in one call."""

    def rollout(self, policy: Policy, cond: Tensors, plan: Plan, grad_steps: int = 0) -> Trajectory:
        assert isinstance(policy, ToySequence)
        streams = plan.streams("rollout")
        tokens = torch.zeros(len(plan), 2, dtype=torch.int64)
        for place in range(2):
            _, log_p = policy.log_probs(tokens)
            tokens[:, place] = draw_symbol(log_p[:, place], streams.uniform())
        return self.record(policy, cond, tokens)

    def record(self, policy: ToySequence, cond: Tensors, tokens: Tensor) -> Trajectory:
        """The trajectory of given symbols, ``[B, 2]``."""
        log_probs = policy.log_probs(tokens)[0].detach().T
        ones = torch.ones_like(log_probs, dtype=torch.int64)
        step = torch.arange(2).unsqueeze(1).expand_as(ones)
        value = policy.values(tokens).detach().T if policy.predicts_value else None
        terms = Terms(log_probs, ones, step, ones.bool(), num_evals=1, value=value)
        return Trajectory(cond, {"tokens": tokens}, {"tokens": tokens}, terms)

    def densities(
        self, policy: Policy, trajectory: Trajectory, k: Tensor, b: Tensor
    ) -> tuple[Transition, Tensors]:
        assert isinstance(policy, ToySequence)
        tokens = trajectory.trace["tokens"][b]
        values = policy.values(tokens) if policy.predicts_value else None
        return _BothSymbols(policy.log_probs(tokens)[1], values), {"tokens": tokens}


class _BothSymbols(Transition):
    """The categoricals of both symbols: ``[R, 2, V]``."""

    def __init__(self, log_p: Tensor, values: Tensor | None):
        self._log_p, self._values = log_p, values

    def log_prob(self, action: Tensors) -> Tensor:
        return self._log_p.gather(-1, action["tokens"].unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self._log_p.exp() * self._log_p).sum(-1)

    def kl(self, other: Transition) -> Tensor:
        assert isinstance(other, _BothSymbols)
        return (self._log_p.exp() * (self._log_p - other._log_p)).sum(-1)

    def value(self) -> Tensor:
        return super().value() if self._values is None else self._values


class ToyCanvas(_ToyPolicy):
    """Three positions of two symbols; what is predicted depends on the whole canvas (2: empty)."""

    def __init__(self, *, valued: bool = False) -> None:
        self.predicts_value = valued
        self.network = Table(3**POSITIONS, POSITIONS, 2, phase=0.5, valued=valued)

    def log_p(self, canvas: Tensor) -> Tensor:
        """``[R, 3]`` to ``[R, 3, 2]``."""
        found: Tensor = self.network(self._code(canvas)).log_softmax(-1)
        return found

    def values(self, canvas: Tensor) -> Tensor:
        """The predicted reward of a canvas: ``[R, 3]`` to ``[R]``."""
        found: Tensor = self.network(self._code(canvas), value=True)
        return found

    def _code(self, canvas: Tensor) -> Tensor:
        return (canvas * 3 ** torch.arange(POSITIONS)).sum(-1)

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        """One or more empty positions per draw; the weight of draw d is 1 + d, to be told apart."""
        noise = torch.stack([streams.uniform(POSITIONS) for _ in range(draws)])
        hidden = (noise < 0.5) | (noise == noise.amin(-1, keepdim=True))
        weight = torch.arange(1, draws + 1, dtype=torch.float64).unsqueeze(1)
        weights = weight.expand(draws, len(streams)).clone()
        return {"hidden": hidden, "weight": weights, "events": hidden.sum(-1, keepdim=True)}

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:
        tokens, hidden = final["tokens"], corruption["hidden"]
        prediction = self.log_p(torch.where(hidden, 2, tokens))

        def error(log_p: Tensor) -> Tensor:
            chosen = log_p.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            return -torch.where(hidden, chosen, torch.zeros_like(chosen)).sum(-1)

        return Denoising(prediction, error)


class _CanvasStep(Transition):
    def __init__(self, log_p: Tensor, canvas: Tensor, value: Tensor | None = None):
        self._log_p, self._empty, self._value = log_p, canvas == 2, value

    def sample(self, streams: Streams) -> Tensors:
        left = self._empty.sum(-1)
        rank = (streams.uniform() * left).long().clamp(max=left - 1)
        place = (self._empty.cumsum(-1) <= rank.unsqueeze(-1)).sum(-1)
        chosen = self._log_p[torch.arange(len(place)), place]
        return {"place": place, "token": draw_symbol(chosen, streams.uniform())}

    def log_prob(self, action: Tensors) -> Tensor:
        rows = torch.arange(len(self._log_p))
        found = self._log_p[rows, action["place"], action["token"]]
        return (found - self._empty.sum(-1).to(found).log()).unsqueeze(1)

    def events(self, action: Tensors) -> Tensor:
        return torch.ones(len(self._empty), 1, dtype=torch.int64)

    def value(self) -> Tensor:
        return super().value() if self._value is None else self._value.unsqueeze(1)

    def entropy(self) -> Tensor:
        """Of the position and the symbol together."""
        left = self._empty.sum(-1).to(self._log_p)
        per_place = -(self._log_p.exp() * self._log_p).sum(-1)
        return ((per_place * self._empty).sum(-1) / left + left.log()).unsqueeze(1)

    def kl(self, other: Transition) -> Tensor:
        assert isinstance(other, _CanvasStep)
        per_place = (self._log_p.exp() * (self._log_p - other._log_p)).sum(-1)
        return ((per_place * self._empty).sum(-1) / self._empty.sum(-1)).unsqueeze(1)


class ToyCanvasSampler(MarkovSampler[ToyCanvas]):
    """Fills one random empty position per call."""

    num_steps = POSITIONS

    def start(self, policy: ToyCanvas, cond: Tensors, streams: Streams) -> Tensors:
        return {"canvas": torch.full((len(streams), POSITIONS), 2)}

    def transition(self, policy: ToyCanvas, state: Tensors, k: Tensor, cond: Tensors) -> Transition:
        canvas = state["canvas"]
        value = policy.values(canvas) if policy.predicts_value else None
        return _CanvasStep(policy.log_p(canvas), canvas, value)

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        filled = state["canvas"].scatter(1, action["place"][:, None], action["token"][:, None])
        return {"canvas": filled}

    def finish(self, state: Tensors) -> Tensors:
        return {"tokens": state["canvas"]}


class ToyGaussian(_ToyPolicy):
    """Two steps on a line: the mean is an affine function of the place, the value a quadratic."""

    predicts_value = True

    def __init__(self) -> None:
        self.network = Table(STEPS, 4, phase=1.0)
        self._start: list[list[float]] = self.network.table[:, :2].tolist()

    def decode_pixels(self, final: Tensors) -> Tensor:
        """The place itself, anywhere on the line, in the place of pixels: ``[B, 1, 1, 1]``."""
        return final["x"][:, :, None, None]

    def moments(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the next place and the predicted reward: ``[R]`` each."""
        row = self.network(k)
        return row[:, 0] + row[:, 1] * x, row[:, 2] + row[:, 3] * x.square()

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int, update: int, updates: int
    ) -> Tensors:
        noise = torch.stack([streams.normal() for _ in range(draws)]).double()
        return {"noise": noise}

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:
        """Predict both places of a path that leads to the finished one.

        The place between is drawn given the end, as the starting weights would have it. The error,
        ``sum (mean - place)^2 / (2 DEVIATION^2)``, is minus the path's log-density, so that minus
        its mean is the evidence lower bound, tight at the start, both up to a constant.
        """
        last = final["x"][:, 0]
        (first, _), (bias, slope) = self._start
        sure = 1 + slope**2
        middle = (first + slope * (last - bias)) / sure
        middle = middle + DEVIATION / math.sqrt(sure) * corruption["noise"]
        zero = torch.zeros_like(last)
        steps = [torch.full_like(last, k, dtype=torch.int64) for k in range(STEPS)]
        means = [self.moments(x, k)[0] for x, k in zip((zero, middle), steps, strict=True)]
        target = torch.stack([middle, last], -1)
        return Denoising(
            torch.stack(means, -1),
            lambda guess: ((guess - target) / DEVIATION).square().sum(-1) / 2,
            lambda guess: DEVIATION**2 / (guess - target).abs().mean(-1),
        )


class _GaussianStep(Transition):
    def __init__(self, mean: Tensor, value: Tensor):
        self._mean, self._value = mean, value

    def sample(self, streams: Streams) -> Tensors:
        return {"next": self._mean + DEVIATION * streams.normal()}

    def log_prob(self, action: Tensors) -> Tensor:
        z = (action["next"] - self._mean) / DEVIATION
        constant = math.log(DEVIATION) + 0.5 * math.log(2 * math.pi)
        return (-0.5 * z.square() - constant).unsqueeze(1)

    def events(self, action: Tensors) -> Tensor:
        return torch.ones(len(self._mean), 1, dtype=torch.int64)

    def kl(self, other: Transition) -> Tensor:
        assert isinstance(other, _GaussianStep)
        return ((self._mean - other._mean) / DEVIATION).square().unsqueeze(1) / 2

    def value(self) -> Tensor:
        return self._value.unsqueeze(1)


class ToyGaussianSampler(MarkovSampler[ToyGaussian]):
    """Two Gaussian steps from 0."""

    num_steps = STEPS

    def start(self, policy: ToyGaussian, cond: Tensors, streams: Streams) -> Tensors:
        return {"x": torch.zeros(len(streams), 1, dtype=torch.float64)}

    def transition(
        self, policy: ToyGaussian, state: Tensors, k: Tensor, cond: Tensors
    ) -> Transition:
        return _GaussianStep(*policy.moments(state["x"][:, 0], k))

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:
        return {"x": action["next"].unsqueeze(1)}

    def preview(
        self, policy: Policy, cond: Tensors, plan: Plan, step: int, grad_steps: int = 1
    ) -> Tensors:
        """The mean of the next place."""
        assert isinstance(policy, ToyGaussian)
        streams = plan.streams("rollout")
        x = self.start(policy, cond, streams)["x"][:, 0]
        for index in range(step + 1):
            k = torch.full((len(plan),), index)
            with torch.set_grad_enabled(index > step - grad_steps):
                mean = policy.moments(x, k)[0]
                x = mean + DEVIATION * streams.normal()
        return {"x": mean.unsqueeze(1)}


class ToyReward(Reward):
    """A rugged function of the symbols, or ``x - 0.3 x^2`` of the place on the line."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        return [self.of([float(word) for word in text.split()]) for text in media.texts]

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """That of the place on the line, which stands where pixels would."""
        place = pixels.flatten()
        return place - 0.3 * place.square()

    @staticmethod
    def of(values: Sequence[float]) -> float:
        """The reward of one sample."""
        if len(values) == 1:
            return values[0] - 0.3 * values[0] ** 2
        code = sum(int(value) * 3**place for place, value in enumerate(values))
        return math.sin(2.3 * code + 0.4) + 1.5 * values[0]


class _ToyPolicyConfig(PolicyConfig):
    gives: ClassVar[frozenset[Capability]]

    def provides(self) -> frozenset[Capability]:
        return self.gives | {Capability.TEXT}


class _ToySamplerConfig(SamplerConfig):
    cls: ClassVar[type[Sampler]]
    densities: ClassVar[frozenset[Capability]]

    def provides(self) -> frozenset[Capability]:
        return self.densities

    def build(self) -> Sampler:
        return self.cls()


class ToySequenceConfig(ValueHeadConfig, _ToyPolicyConfig):
    """Two symbols, one after the other."""

    paradigm = "toy_sequence"
    gives = frozenset({Capability.ELBO})

    def build(self) -> Policy:
        return ToySequence(valued=self.value_head)


class ToyCanvasConfig(ValueHeadConfig, _ToyPolicyConfig):
    """Three positions, filled in random order."""

    paradigm = "toy_canvas"
    gives = frozenset({Capability.ELBO, Capability.DENOISING})

    def build(self) -> Policy:
        return ToyCanvas(valued=self.value_head)


class ToyGaussianConfig(_ToyPolicyConfig):
    """Two Gaussian steps on a line."""

    paradigm = "toy_gaussian"
    gives = frozenset({
        Capability.ELBO, Capability.DENOISING, Capability.VALUE, Capability.DIFFERENTIABLE,
    })  # fmt: skip

    def build(self) -> Policy:
        return ToyGaussian()


CATEGORICAL = frozenset({Capability.STEP_LOGP, Capability.STEP_KL, Capability.ENTROPY})


class ToySequenceSamplerConfig(_ToySamplerConfig):
    """Two symbols, scored in one call."""

    paradigm = "toy_sequence"
    cls = ToySequenceSampler
    densities = CATEGORICAL


class ToyCanvasSamplerConfig(_ToySamplerConfig):
    """One position per call."""

    paradigm = "toy_canvas"
    cls = ToyCanvasSampler
    densities = CATEGORICAL


class ToyGaussianSamplerConfig(_ToySamplerConfig):
    """One Gaussian step per call."""

    paradigm = "toy_gaussian"
    cls = ToyGaussianSampler
    densities = frozenset({Capability.STEP_LOGP, Capability.STEP_KL, Capability.PREVIEW})


class ToyRewardConfig(RewardConfig):
    """A rugged function of a toy's sample."""

    media = frozenset({Capability.TEXT})
    differentiable = True

    def build(self) -> Reward:
        return ToyReward()


@hookimpl
def register_policies(register: Callable[[str, type[PolicyConfig]], None]) -> None:
    register("toy_sequence", ToySequenceConfig)
    register("toy_canvas", ToyCanvasConfig)
    register("toy_gaussian", ToyGaussianConfig)


@hookimpl
def register_samplers(register: Callable[[str, type[SamplerConfig]], None]) -> None:
    register("toy_sequence", ToySequenceSamplerConfig)
    register("toy_canvas", ToyCanvasSamplerConfig)
    register("toy_gaussian", ToyGaussianSamplerConfig)


@hookimpl
def register_rewards(register: Callable[[str, type[RewardConfig]], None]) -> None:
    register("toy_reward", ToyRewardConfig)
