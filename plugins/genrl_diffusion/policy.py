"""The bases of diffusion policies: what a network predicts, and the matching error that it gives.

latents x = alpha x0 + sigma eps      flow matching: alpha = 1 - t, sigma = t, t in [0, 1]
                                      variance preserving: alpha^2 = alpha_bar[t], t in 0..T-1
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genrl_core import GenRLError, Matching, Policy, RecipeError, Scored, Streams, Tensors
from genrl_diffusion import DiffusionPolicyConfig

Prediction = Literal["velocity", "epsilon", "v", "sample"]


class DiffusionPolicy(Policy):
    """A network that sees data and noise apart in a noisy latent.

    ``final`` is ``latents`` ``[B, *shape]``, float32, or float64 where the network is. A policy
    extends ``FlowPolicy`` or ``VariancePreservingPolicy``, and gives ``encode``, ``decode`` and the
    prediction; the rest follows.

    Attributes:
        shape: of one latent, without the sample axis.
        prediction: what ``predict`` returns: ``velocity`` is ``eps - x0``, ``v`` is
            ``alpha eps - sigma x0``, ``epsilon`` is eps, ``sample`` is x0.
    """

    prediction: Prediction

    def __init__(self, config: DiffusionPolicyConfig, network: nn.Module, shape: Sequence[int]):
        self.config = config
        self.network = network
        self.shape = tuple(shape)
        self.combine_draws = config.bound.combine

    @property
    def dtype(self) -> torch.dtype:
        """What latents and densities are computed in: float64 where the network is, or float32."""
        dtypes = {parameter.dtype for parameter in self.network.parameters()}
        return torch.float64 if torch.float64 in dtypes else torch.float32

    @abstractmethod
    def predict(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        """What the network says of noisy latents, in the space of ``prediction``: ``[R, *shape]``.

        Args:
            x: ``[R, *shape]`` float32 or float64.
            time: ``[R]`` of the same dtype, in the units of ``alpha_sigma``.
            cond: name -> ``[R, ...]``, from ``encode``.
        """

    @abstractmethod
    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of data and noise at a time, ``[R]`` float64 each."""

    @abstractmethod
    def times(self, num_steps: int, shift: float) -> Tensor:
        """The times that a sampler visits, from noise to data: ``[num_steps + 1]`` float64."""

    @abstractmethod
    def time_at(self, share: Tensor) -> Tensor:
        """The time at a share of the way from data (0) to noise (1): float64, shaped alike."""

    def unconditional(self, cond: Tensors) -> Tensors:  # noqa: ARG002  # for subclasses
        """What takes the place of ``cond`` on the unguided side: same names and shapes.

        Raises:
            GenRLError: by default, since only the policy knows its empty prompt.
        """
        raise GenRLError(
            f"{type(self).__name__} has no unconditional prompt, which a sampler.guidance_scale "
            "other than 1 needs: set guidance_scale: 1, or implement unconditional(cond)"
        )

    def split(
        self, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The data and the noise that the prediction sees in ``x``: ``x0_hat, eps_hat``.

        Args:
            prediction, x: ``[R, *shape]``.
            alpha, sigma: ``[R]``.
        """
        a, s = along(alpha, x), along(sigma, x)
        if self.prediction == "velocity":
            return x - s * prediction, x + a * prediction
        if self.prediction == "v":
            return a * x - s * prediction, s * x + a * prediction
        if self.prediction == "epsilon":
            return (x - s * prediction) / a, prediction
        return prediction, (x - a * prediction) / s

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What a perfect network would predict: ``[R, *shape]``."""
        if self.prediction == "velocity":
            return noise - x0
        if self.prediction == "v":
            return along(alpha, x0) * noise - along(sigma, x0) * x0
        return noise if self.prediction == "epsilon" else x0

    def corrupt(
        self, final: Tensors, streams: Streams, draws: int,
        update: int, updates: int,  # noqa: ARG002  # every update draws alike
    ) -> Tensors:  # fmt: skip
        """Times and noises: ``time`` ``[D, B]`` float64 and ``noise`` ``[D, B, *shape]``.

        The D times of a sample are spread evenly, ``u + d / D`` modulo 1 with one ``u``, before
        they are transformed to the distribution ``policy.bound.timesteps``: each is distributed as
        if it were alone, and their mean varies less.
        """
        x0 = final["latents"]
        source = streams.shared if self.config.bound.shared_by_group else streams
        offset = source.uniform(1).double()
        share = (offset + torch.arange(draws, device=offset.device) / draws) % 1.0
        if self.config.bound.timesteps == "logit_normal":
            share = torch.special.ndtri(share.clamp(2**-25, 1 - 2**-25)).sigmoid()
        noise = source.normal(draws, *x0.shape[1:]).to(x0.dtype)
        return {"time": self.time_at(share).T.contiguous(), "noise": noise.transpose(0, 1)}

    def matching(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Matching:
        """The prediction on noised samples; the error is its mean squared error, in its own space.

        ``prediction`` is ``[R, *shape]``; ``error`` gives ``[R]``, the mean over the elements of
        ``(prediction - target)^2`` (flow matching, arXiv 2210.02747; for ``epsilon`` the simple
        loss of DDPM, arXiv 2006.11239).
        """
        x0, noise, time = final["latents"], corruption["noise"], corruption["time"]
        alpha, sigma = self.alpha_sigma(time)
        x = along(alpha, x0) * x0 + along(sigma, x0) * noise
        target = self.target(x0, noise, alpha, sigma)

        def error(prediction: Tensor) -> Tensor:
            return (prediction - target).square().flatten(1).mean(1)

        return Matching(_full(self.predict(x, time.to(x.dtype), cond)), error)

    def bound(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Scored:
        """``-w x`` the matching error, ``[R, 1]``, w by ``policy.bound.weighting``.

        The negative is a bound on the log-likelihood for one weighting alone (the change of the
        signal-to-noise ratio, arXiv 2107.00630). The weightings here are those that models are
        trained with, and that AWM (arXiv 2509.25050) reinforces; the scale is per element.
        """
        matching = self.matching(final, cond, corruption)
        error = matching.error(matching.prediction)
        alpha, sigma = self.alpha_sigma(corruption["time"])
        power = {"uniform": 0, "sigma": 1, "sigma_squared": 2}[self.config.bound.weighting]
        weight = (sigma / (alpha + sigma)).pow(power).to(error.dtype)
        return Scored(log_probs=-(weight * error).unsqueeze(1))


class FlowPolicy(DiffusionPolicy):
    """Flow matching: ``x = (1 - t) x0 + t eps``, and the network predicts the velocity.

    class Tiny(FlowPolicy):
        def velocity(self, x, time, cond):
            return self.network(x, time, cond["label"])      # [R, *shape]
    """

    prediction = "velocity"

    @abstractmethod
    def velocity(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        """``eps - x0``, the direction from data to noise: ``[R, *shape]``; see ``predict``."""

    def predict(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        return self.velocity(x, time, cond)

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - time.double(), time.double()

    def times(self, num_steps: int, shift: float) -> Tensor:
        """From 1 to 0 in even steps, then ``t -> shift t / (1 + (shift - 1) t)`` (DanceGRPO's).

        diffusers' schedulers shift the lower end twice; a policy that wants their exact times
        overrides this method.
        """
        time = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return shift * time / (1 + (shift - 1) * time)

    def time_at(self, share: Tensor) -> Tensor:
        return share.double()


class VariancePreservingPolicy(DiffusionPolicy):
    """A model of T noise levels with ``alpha^2 + sigma^2 = 1``: DDPM, Stable Diffusion 1 and 2.

    Args:
        alpha_bars: ``[T]``, the squares of alpha, falling.
        prediction: ``epsilon``, ``v`` or ``sample``.
        final_alpha_bar: alpha^2 of the level that the last step arrives at, time -1: 1 for data;
            ``alpha_bars[0]`` where diffusers' ``set_alpha_to_one`` is false.
        steps_offset: added to every visited time (diffusers' name; 1 for Stable Diffusion).
    """

    alpha_bars: Tensor
    prediction: Literal["epsilon", "v", "sample"]

    def __init__(
        self, config: DiffusionPolicyConfig, network: nn.Module, shape: Sequence[int],
        alpha_bars: Tensor, prediction: Literal["epsilon", "v", "sample"],
        final_alpha_bar: float = 1.0, steps_offset: int = 0,
    ):  # fmt: skip
        super().__init__(config, network, shape)
        self.alpha_bars = alpha_bars.detach().double().cpu()
        self.prediction = prediction
        self.final_alpha_bar = final_alpha_bar
        self.steps_offset = steps_offset

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.cat([self.alpha_bars, self.alpha_bars.new_tensor([self.final_alpha_bar])])
        found = table.to(time.device)[time.round().long()]  # -1 is the last entry
        return found.sqrt(), (1 - found).clamp(min=0).sqrt()

    def times(self, num_steps: int, shift: float) -> Tensor:
        """Every ``T // num_steps``-th time, downwards ("leading" spacing), then -1 for the end.

        Raises:
            RecipeError: there are more steps than levels, or a shift is asked for.
        """
        levels = len(self.alpha_bars)
        if shift != 1:
            raise RecipeError(
                f"sampler.shift: {shift:g} moves the times of flow matching, but "
                f"{type(self).__name__} has a table of {levels} noise levels: leave shift at 1"
            )
        if num_steps > levels:
            raise RecipeError(
                f"sampler.num_inference_steps: {num_steps} steps are more than the {levels} noise "
                f"levels of {type(self).__name__}: take at most {levels}"
            )
        visited = torch.arange(num_steps).flip(0) * (levels // num_steps) + self.steps_offset
        return torch.cat([visited.clamp(max=levels - 1), torch.tensor([-1])]).double()

    def time_at(self, share: Tensor) -> Tensor:
        levels = len(self.alpha_bars)
        return (share.double() * levels).floor().clamp(max=levels - 1)


def guided_prediction(
    policy: DiffusionPolicy, x: Tensor, time: Tensor, cond: Tensors, guidance_scale: float = 1.0
) -> Tensor:
    """``uncond + guidance_scale (cond - uncond)`` in one call of the network: ``[R, *shape]``.

    The one place where guidance happens, in the rollout, its density and evaluation alike. At 1 it
    is off and costs nothing.
    """
    if guidance_scale == 1:
        return _full(policy.predict(x, time, cond))
    uncond = policy.unconditional(cond)
    both = {name: torch.cat([tensor, uncond[name]]) for name, tensor in cond.items()}
    found = _full(policy.predict(torch.cat([x, x]), torch.cat([time, time]), both))
    with_prompt, without = found.chunk(2)
    return without + guidance_scale * (with_prompt - without)


def along(values: Tensor, x: Tensor) -> Tensor:
    """``[R]`` shaped and typed so that it multiplies ``[R, *shape]``."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _full(prediction: Tensor) -> Tensor:
    return prediction if prediction.dtype == torch.float64 else prediction.float()
