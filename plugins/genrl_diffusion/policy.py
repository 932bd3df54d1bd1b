"""The bases of diffusion policies: what a network predicts, and the denoising error that it gives.

latents x = alpha x0 + sigma eps      flow matching: alpha = 1 - t, sigma = t, t in [0, 1]
                                      variance preserving: alpha^2 = alpha_bar[t], t in 0..T-1
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from genrl_core import Capability, Denoising, GenRLError, Policy, Streams, Tensors
from genrl_diffusion import DiffusionPolicyConfig

Prediction = Literal["velocity", "epsilon", "v", "sample"]
LEAST_TIME = 0.01
"""Where the evidence lower bound of flow matching ends: its weights grow like 1 / time."""


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
        self.combine_draws = config.elbo.combine
        if Capability.VALUE in config.provides():
            self.predicts_value, self.new_modules = True, ("value_head",)

    @property
    def dtype(self) -> torch.dtype:
        """What latents and densities are computed in: float64 where the network is, or float32."""
        first = next(self.network.parameters(), None)
        double = first is not None and first.dtype == torch.float64
        return torch.float64 if double else torch.float32

    @abstractmethod
    def predict(self, x: Tensor, time: Tensor, cond: Tensors) -> Tensor:
        """What the network says of noisy latents, in the space of ``prediction``: ``[R, *shape]``.

        Args:
            x: ``[R, *shape]`` float32 or float64.
            time: ``[R]`` of the same dtype, in the units of ``alpha_sigma``.
            cond: name -> ``[R, ...]``, from ``encode``.
        """

    def predict_and_value(self, x: Tensor, time: Tensor, cond: Tensors) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """``predict`` and, by the same call of the network, the expected reward of ``x``: ``[R]``.

        What a policy with ``predicts_value`` implements, for objectives with a critic (ppo).

        Raises:
            GenRLError: by default, since only the policy knows its value head.
        """
        raise GenRLError(
            f"{type(self).__name__} sets predicts_value and does not say what it predicts: "
            "implement predict_and_value(x, time, cond), or leave policy.value_head out"
        )

    @abstractmethod
    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of data and noise at a time, ``[R]`` float64 each."""

    @abstractmethod
    def times(self, num_steps: int, shift: float) -> Tensor:
        """The times that a sampler visits, from noise to data: ``[num_steps + 1]`` float64."""

    @abstractmethod
    def time_at(self, share: Tensor) -> Tensor:
        """The time at a share of the way from data (0) to noise (1): float64, shaped alike."""

    @abstractmethod
    def noise_weight(self, time: Tensor) -> Tensor:
        """What ``(eps_hat - eps)^2`` at a uniformly drawn time counts for in the ELBO, ``[R]``.

        The least time stands for the reconstruction: data given the latent are Gaussian around
        ``x0_hat`` with the deviation ``sigma / alpha``, whose log-density has the weight 1/2 and
        the constant ``-log(sigma / alpha sqrt(2 pi))`` per element.
        """

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
        they are transformed to the distribution ``policy.elbo.timesteps``: each is distributed as
        if it were alone, and their mean varies less.
        """
        x0 = final["latents"]
        source = streams.shared if self.config.elbo.shared_by_group else streams
        offset = source.uniform(1).double()
        share = (offset + torch.arange(draws, device=offset.device) / draws) % 1.0
        if self.config.elbo.timesteps == "logit_normal":
            share = torch.special.ndtri(share.clamp(2**-25, 1 - 2**-25)).sigmoid()
        noise = source.normal(draws, *x0.shape[1:]).to(x0.dtype)
        return {"time": self.time_at(share).T.contiguous(), "noise": noise.transpose(0, 1)}

    def denoising(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Denoising:
        """The prediction on noised samples; the error is its mean squared error, in its own space.

        ``prediction`` is ``[R, *shape]``; ``error`` gives ``[R]``, the mean over the elements of
        ``(prediction - target)^2`` (flow matching, arXiv 2210.02747; for ``epsilon`` the simple
        loss of DDPM, arXiv 2006.11239). The clean sample that it implies is off by ``k`` times
        ``prediction - target``, and the weight is ``k^2 / mean |k (prediction - target)|``, whose
        denominator is at least 1e-5, as in DiffusionNFT's code.
        """
        x0, noise, time = final["latents"], corruption["noise"], corruption["time"]
        alpha, sigma = self.alpha_sigma(time)
        x = along(alpha, x0) * x0 + along(sigma, x0) * noise
        target = self.target(x0, noise, alpha, sigma)

        def error(prediction: Tensor) -> Tensor:
            return (prediction - target).square().flatten(1).mean(1)

        def weight(prediction: Tensor) -> Tensor:
            size = (prediction - target).abs().flatten(1).mean(1).double()
            scale = self._clean_slope(alpha, sigma)
            return (scale.square() / (scale * size).clamp(min=1e-5)).to(prediction.dtype)

        return Denoising(_full(self.predict(x, time.to(x.dtype), cond)), error, weight)

    def elbo(self, final: Tensors, cond: Tensors, corruption: Tensors) -> Tensor:
        """``-w x`` the denoising error, ``[R, 1]``, w by ``policy.elbo.weighting``.

        It bounds the log-likelihood for one weighting alone, ``elbo``: then the number of elements
        times its mean over the draws of ``corrupt`` is the evidence lower bound (arXiv 2107.00630)
        less two terms that no weight enters, that of the prior and the constant of the
        reconstruction (``noise_weight``). The other weightings are those that models are trained
        with, and that AWM (arXiv 2509.25050) reinforces. The scale is per element.
        """
        denoising = self.denoising(final, cond, corruption)
        error = denoising.error(denoising.prediction)
        weight = self._weight(corruption["time"]).to(error.dtype)
        return -(weight * error).unsqueeze(1)

    def _clean_slope(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """How much x0_hat moves with the prediction, see ``split``: ``[R]``."""
        if self.prediction == "sample":
            return torch.ones_like(sigma)
        return sigma / alpha if self.prediction == "epsilon" else sigma

    def _weight(self, time: Tensor) -> Tensor:
        """W in ``elbo``: ``[R]`` float64."""
        alpha, sigma = self.alpha_sigma(time)
        if (kind := self.config.elbo.weighting) != "elbo":
            power = {"uniform": 0, "sigma": 1, "sigma_squared": 2}[kind]
            return (sigma / (alpha + sigma)).pow(power)
        # How much eps_hat moves with the prediction; see split.
        slope = {
            "velocity": alpha, "v": alpha, "epsilon": torch.ones_like(alpha),
            "sample": alpha / sigma,
        }[self.prediction]  # fmt: skip
        return slope.square() * self.noise_weight(time)


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
        # 1 + (shift - 1) t would round pure noise to a level beside 1, where the noise of
        # flow_sde has its pole.
        return shift * time / (shift * time + (1 - time))

    def time_at(self, share: Tensor) -> Tensor:
        least = LEAST_TIME if self.config.elbo.weighting == "elbo" else 0.0
        return share.double().clamp(min=least)

    def noise_weight(self, time: Tensor) -> Tensor:
        """Half the slope of ``log(sigma^2 / alpha^2)``, which is ``1 / (t (1 - t))``.

        All times below ``LEAST_TIME`` are drawn as that one and share the reconstruction's 1/2.
        """
        inside = 1 / (time.double() * (1 - time.double()))
        return torch.where(time > LEAST_TIME, inside, 0.5 / LEAST_TIME)


def guided_prediction(
    policy: DiffusionPolicy, x: Tensor, time: Tensor, cond: Tensors, guidance_scale: float = 1.0
) -> Tensor:
    """``uncond + guidance_scale (cond - uncond)`` in one call of the network: ``[R, *shape]``.

    The prediction of ``guided_outputs``, for samplers that want it alone.
    """
    return guided_outputs(policy, x, time, cond, guidance_scale)[0]


def guided_outputs(
    policy: DiffusionPolicy, x: Tensor, time: Tensor, cond: Tensors, guidance_scale: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """``guided_prediction``; and the values of the prompted side, ``[R]``, where predicted.

    Rollout, density and evaluation of diffusion policies all come through here, and the formula is
    that
    of ``Policy.guide``. At 1 guidance is off and costs nothing.
    """
    return policy.guide(partial(_outputs, policy), (x, time), cond, guidance_scale)


def _outputs(
    policy: DiffusionPolicy, x: Tensor, time: Tensor, cond: Tensors
) -> tuple[Tensor, Tensor | None]:
    if not policy.predicts_value:
        return _full(policy.predict(x, time, cond)), None
    prediction, values = policy.predict_and_value(x, time, cond)
    return _full(prediction), _full(values)


def along(values: Tensor, x: Tensor) -> Tensor:
    """``[R]`` shaped and typed so that it multiplies ``[R, *shape]``."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _full(prediction: Tensor) -> Tensor:
    return prediction if prediction.dtype == torch.float64 else prediction.float()
