"""The samplers with a density per step: one Gaussian transition for every step kernel.

Flow-GRPO (arXiv 2505.05470), DanceGRPO (2505.07818), CPS (2509.05952) and DDPO (2305.13301) differ
in three coefficients per step (``genrl_diffusion.kernel``) and in nothing else.

Deviations from their released codes: log-densities are sums over the latent's elements, and the
mean that all of them take is the objective's ``over: mean``; CPS keeps its true density, where its
authors drop ``1 / (2 S^2)``, unless ``density: unscaled``; the last step adds no noise unless
``final_step: kernel`` (Flow-GRPO adds it and leaves the step out of training, DanceGRPO decodes the
denoised latent).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from genrl_core import (
    MarkovSampler,
    Plan,
    Policy,
    RecipeError,
    Streams,
    Tensors,
    Trajectory,
    Transition,
)
from genrl_diffusion.kernel import Step, flow_ode, level_of, rescaled
from genrl_diffusion.policy import DiffusionPolicy, along, guided_outputs

if TYPE_CHECKING:
    from genrl_diffusion import DiffusionSamplerConfig, RolloutConfig

STORAGE = {"full": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


class GaussianTransition(Transition):
    """One step of R rows: ``x' ~ N(mean, deviation^2)``, one term per row.

    An action is ``latents`` ``[R, *shape]``. Where the deviation is 0 the step is deterministic:
    its term has no events and its numbers are 0.

    Args:
        mean: ``[R, *shape]`` float32 or float64.
        deviation: ``[R]``.
        draws: whether a noise is drawn at all; it must not depend on which samples stand together.
        storage: the dtype that an action is rounded to, or None.
        unscaled: whether ``log_prob`` is CPS's ``-sum (x' - mean)^2`` (arXiv 2509.05952), which is
            no log-density: its differences are those of the density times ``2 S^2``, so it weighs
            steps by their noise, and a clip range means another distance at every step. ``kl``
            stays that of the Gaussian.
        values: ``[R]`` the expected reward of each state, where the policy predicts it.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, *, draws: bool = True,
        storage: torch.dtype | None = None, unscaled: bool = False,
        values: Tensor | None = None,
    ):  # fmt: skip
        self.mean = mean
        self.deviation = deviation.to(mean.dtype)
        self.noisy = deviation > 0
        self._draws = draws
        self._storage = storage
        self._unscaled = unscaled
        self._values = values

    def sample(self, streams: Streams) -> Tensors:
        drawn = self.mean
        if self._draws:
            noise = streams.normal(*self.mean.shape[1:]).to(self.mean.dtype)
            drawn = drawn + along(self.deviation, drawn) * noise
        return {"latents": rounded(drawn, self._storage)}

    def log_prob(self, action: Tensors) -> Tensor:
        """``-sum (x' - mean)^2 / (2 S^2) - n log(S sqrt(2 pi))`` over the n elements, in float64.

        The sum over tens of thousands of elements has more digits than float32 can hold, and a
        ratio is made of the last ones.
        """
        difference = action["latents"].to(self.mean.dtype) - self.mean
        if self._unscaled:
            return self._where_noisy(-difference.square().flatten(1).sum(1, dtype=torch.float64))
        square = self._square(difference)
        constant = self._safe.log() + 0.5 * math.log(2 * math.pi)
        return self._where_noisy(-0.5 * square - self._elements() * constant)

    def events(self, action: Tensors) -> Tensor:  # noqa: ARG002  # the same for every action
        return (self.noisy * self._elements()).unsqueeze(1)

    def kl(self, other: Transition) -> Tensor:
        """``sum (mean - mean')^2 / (2 S^2)``: the deviation does not depend on the weights."""
        assert isinstance(other, GaussianTransition)
        return self._where_noisy(0.5 * self._square(self.mean - other.mean))

    def value(self) -> Tensor:
        """The expected reward of the state, whether the step draws or not."""
        return super().value() if self._values is None else self._values.unsqueeze(1)

    def _elements(self) -> int:
        return math.prod(self.mean.shape[1:])

    @cached_property
    def _safe(self) -> Tensor:
        """The deviations in float64, 1 where there is none."""
        return self.deviation.double().masked_fill(~self.noisy, 1.0)

    def _square(self, difference: Tensor) -> Tensor:
        """The squared norm of ``difference / S``: ``[R]`` float64."""
        scaled = difference / along(self._safe, difference)
        return scaled.square().flatten(1).sum(1, dtype=torch.float64)

    def _where_noisy(self, values: Tensor) -> Tensor:
        return values.masked_fill(~self.noisy, 0.0).unsqueeze(1)


class KernelSampler(MarkovSampler[DiffusionPolicy]):
    """Denoises step by step with the coefficients of ``config``; K + 1 latents are the record.

    The trace holds ``latents`` ``[B, K + 1, *shape]``, from noise to data, in the precision of
    ``config.storage``; with a window of w steps ``latents`` ``[B, w + 1, *shape]`` and ``first``
    ``[B]``, the step where it begins. ``terms.scale`` is S, the deviation of the step, and
    ``terms.duration`` the noise level (1 = pure noise, 0 = data) that it removes, ``|dt|`` of flow
    matching (both for GRPO-Guard, arXiv 2510.22319).
    """

    def __init__(self, config: "DiffusionSamplerConfig"):
        self.config = config
        self.num_steps = config.num_inference_steps
        self._storage = STORAGE[config.storage]
        self._schedules: WeakKeyDictionary[DiffusionPolicy, Tensors] = WeakKeyDictionary()
        self._tables: WeakKeyDictionary[DiffusionPolicy, Tensor] = WeakKeyDictionary()

    def schedule(self, policy: DiffusionPolicy) -> Tensors:
        """The steps of this policy, each ``[K]`` float64; computed once.

        ``time``, ``alpha``, ``sigma`` where a step begins; ``A``, ``B``, ``S`` with noise, and
        ``B_ode`` without; ``duration``, the noise level that the step removes.
        """
        if policy not in self._schedules:
            self._schedules[policy] = self._schedule(policy)
        return self._schedules[policy]

    def _schedule(self, policy: DiffusionPolicy) -> Tensors:
        times = policy.times(self.steps(policy), self.config.shift)
        alpha, sigma = policy.alpha_sigma(times)
        levels = list(zip(alpha.tolist(), sigma.tolist(), strict=True))
        rows = []
        for step, (now, after) in enumerate(itertools.pairwise(levels)):
            pair = level_of(*now), level_of(*after)
            plain: Step = flow_ode(*pair)
            noisy = self.config.coefficients(*pair) if step < self.config.noisy_steps else plain
            rows.append((*rescaled(noisy, *after), rescaled(plain, *after)[1], pair[0] - pair[1]))
        columns = torch.tensor(rows, dtype=torch.float64).T
        found = dict(zip(("A", "B", "S", "B_ode", "duration"), columns, strict=True))
        return found | {"time": times[:-1], "alpha": alpha[:-1], "sigma": sigma[:-1]}

    def start(self, policy: DiffusionPolicy, cond: Tensors, streams: Streams) -> Tensors:  # noqa: ARG002
        source = streams.shared if self.config.same_noise else streams
        return {"latents": rounded(initial_noise(policy, self.config, source), self._storage)}

    def begin(
        self, policy: DiffusionPolicy, cond: Tensors, plan: Plan, streams: Streams
    ) -> Tensors:
        return self.start(policy, cond, streams) | self._window(plan)

    def _window(self, plan: Plan) -> Tensors:
        """``first`` ``[B]``, the step where the window begins: the same in a whole group."""
        if self.config.window is None:
            return {}
        place = self.config.window_place(plan.iteration)
        if place is not None:
            return {"first": torch.full((len(plan),), place, device=plan.device)}
        low, end = self.config.window_range
        places = end - low - self.config.window.size + 1
        drawn = (plan.streams("window").shared.uniform().double() * places).floor().long()
        return {"first": low + drawn.clamp(max=places - 1)}

    def transition(
        self, policy: DiffusionPolicy, state: Tensors, k: Tensor, cond: Tensors
    ) -> GaussianTransition:
        x, row = state["latents"].to(policy.dtype), self._rows(policy, k)
        (data, noise), values = self._split(policy, x, row, cond)
        b, deviation = row["B"], row["S"]
        if self.config.window is not None:
            first = state["first"]
            inside = (k >= first) & (k < first + self.config.window.size)
            b = torch.where(inside, b, row["B_ode"])
            deviation = deviation.masked_fill(~inside, 0.0)
        mean = along(row["A"], x) * data + along(b, x) * noise
        draws = bool((row["S"] > 0).any())
        return GaussianTransition(
            mean, deviation, draws=draws, storage=self._storage, unscaled=self.config.unscaled,
            values=values,
        )  # fmt: skip

    def _rows(self, policy: DiffusionPolicy, k: Tensor) -> Tensors:
        """The schedule's numbers at the steps ``k`` ``[R]``, in the policy's dtype."""
        steps, table, dtype = self.schedule(policy), self._tables.get(policy), policy.dtype
        if table is None or (table.device, table.dtype) != (k.device, dtype):
            table = torch.stack(list(steps.values())).to(k.device, dtype)
            self._tables[policy] = table
        return dict(zip(steps, table[:, k], strict=True))

    def _split(
        self, policy: DiffusionPolicy, x: Tensor, row: Tensors, cond: Tensors
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """``x0_hat, eps_hat`` of the guided network, and the values where there are any.

        ``row`` is what ``_rows`` gives.
        """
        time, scale = row["time"].to(x.dtype), self.config.guidance_scale
        prediction, values = guided_outputs(policy, x, time, cond, scale)
        return policy.split(prediction, x, row["alpha"], row["sigma"]), values

    def preview(
        self, policy: Policy, cond: Tensors, plan: Plan, step: int, grad_steps: int = 1
    ) -> Tensors:
        """``latents``: x0_hat as the network sees it where step ``step`` begins."""
        known, streams = cast(DiffusionPolicy, policy), plan.streams("rollout")
        check_step(step, self.steps(known))
        state = self.begin(known, cond, plan, streams)
        for index in range(step):
            with torch.set_grad_enabled(index > step - grad_steps):
                k = torch.full((len(plan),), index, device=plan.device)
                action = self.transition(known, state, k, cond).sample(streams)
                state = self.advance(state, action, k)
        with torch.set_grad_enabled(grad_steps > 0):
            row = self._rows(known, torch.full((len(plan),), step, device=plan.device))
            x = state["latents"].to(known.dtype)
            (data, _), _ = self._split(known, x, row, cond)
        return {"latents": data}

    def advance(self, state: Tensors, action: Tensors, k: Tensor) -> Tensors:  # noqa: ARG002
        return state | action

    def finish(self, state: Tensors) -> Tensors:
        return {"latents": state["latents"]}

    def pack(self, states: list[Tensors], actions: list[Tensors]) -> Tensors:  # noqa: ARG002
        latents = torch.stack([state["latents"].detach() for state in states], 1)
        record = {"latents": latents if self._storage is None else latents.to(self._storage)}
        if self.config.window is None:
            return record
        first = states[0]["first"]
        place = first.unsqueeze(1) + torch.arange(self.config.window.size + 1, device=first.device)
        rows = torch.arange(len(first), device=first.device).unsqueeze(1)
        return {"latents": record["latents"][rows, place], "first": first}

    def restore(self, trace: Tensors, k: Tensor, b: Tensor) -> tuple[Tensors, Tensors]:
        """The latents before and after step k; outside a window, those of its nearest step."""
        latents, state, place = trace["latents"], {}, k
        if self.config.window is not None:
            state["first"] = trace["first"][b]
            place = (k - state["first"]).clamp(0, self.config.window.size - 1)
        return state | {"latents": latents[b, place]}, {"latents": latents[b, place + 1]}

    def walk(
        self, policy: DiffusionPolicy, cond: Tensors, plan: Plan,
        given: Sequence[Tensors] | None, grad_steps: int = 0,
    ) -> Trajectory:  # fmt: skip
        found = super().walk(policy, cond, plan, given, grad_steps)
        terms, steps = found.terms, self.schedule(policy)
        scale, duration = (
            torch.where(terms.mask, steps[name].to(terms.log_probs).unsqueeze(1), 1.0)
            for name in ("S", "duration")
        )
        return replace(found, terms=replace(terms, scale=scale, duration=duration))


def initial_noise(policy: DiffusionPolicy, config: "RolloutConfig", streams: Streams) -> Tensor:
    """What every sample starts from: ``[B, *shape]`` in the policy's dtype."""
    return config.temperature * streams.normal(*policy.shape).to(policy.dtype)


def check_step(step: int, num_steps: int) -> None:
    """Refuse a step that the sampler does not take.

    Raises:
        RecipeError: ``step`` is not one of 0 to ``num_steps - 1``.
    """
    if not 0 <= step < num_steps:
        raise RecipeError(
            f"step {step} is asked for, but sampler.num_inference_steps is {num_steps}: "
            f"choose one of 0 to {num_steps - 1}, or take more steps"
        )


def rounded(latents: Tensor, storage: torch.dtype | None) -> Tensor:
    """The latents that a record in ``storage`` gives back, in their own dtype."""
    return latents if storage is None else latents.to(storage).to(latents.dtype)
