"""The base of models with a table of noise levels and ``alpha^2 + sigma^2 = 1``."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from genrl_core import RecipeError
from genrl_diffusion import DiffusionPolicyConfig
from genrl_diffusion.policy import DiffusionPolicy


class VariancePreservingPolicy(DiffusionPolicy):
    """A model of T noise levels with ``alpha^2 + sigma^2 = 1``: DDPM, Stable Diffusion 1 and 2.

    Args:
        alpha_bars: ``[T]``, the squares of alpha, falling.
        prediction: ``epsilon``, ``v`` or ``sample``.
        final_alpha_bar: alpha^2 of the level that the last step arrives at, time -1: 1 for data;
            ``alpha_bars[0]`` where diffusers' ``set_alpha_to_one`` is false.
        steps_offset: added to every visited time (diffusers' name; 1 for Stable Diffusion).
        timestep_spacing: ``leading`` or ``trailing`` (diffusers' names); see ``times``.
    """

    alpha_bars: Tensor
    prediction: Literal["epsilon", "v", "sample"]

    def __init__(
        self, config: DiffusionPolicyConfig, network: nn.Module, shape: Sequence[int],
        alpha_bars: Tensor, prediction: Literal["epsilon", "v", "sample"],
        final_alpha_bar: float = 1.0, steps_offset: int = 0,
        timestep_spacing: Literal["leading", "trailing"] = "leading",
    ):  # fmt: skip
        super().__init__(config, network, shape)
        self.alpha_bars = alpha_bars.detach().double().cpu()
        self.prediction = prediction
        self.final_alpha_bar = final_alpha_bar
        self.steps_offset = steps_offset
        self.timestep_spacing = timestep_spacing

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.cat([self.alpha_bars, self.alpha_bars.new_tensor([self.final_alpha_bar])])
        found = table.to(time.device)[time.round().long()]  # -1 is the last entry
        return found.sqrt(), (1 - found).clamp(min=0).sqrt()

    def times(self, num_steps: int, shift: float) -> Tensor:
        """``num_steps`` times downwards, then -1 for the end.

        ``leading`` visits every ``T // num_steps``-th from 0 on, as DDPM and Stable Diffusion do.
        ``trailing`` visits every ``T / num_steps``-th from T - 1 down (arXiv 2305.08891): it begins
        at the most noise, and no step is left that removes almost all noise at once and would
        outweigh the densities of all others.

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
        if self.timestep_spacing == "trailing":
            visited = torch.round(torch.arange(num_steps, 0, -1) * (levels / num_steps)).long() - 1
        else:
            visited = torch.arange(num_steps).flip(0) * (levels // num_steps)
        visited = visited + self.steps_offset
        return torch.cat([visited.clamp(max=levels - 1), torch.tensor([-1])]).double()

    def time_at(self, share: Tensor) -> Tensor:
        levels = len(self.alpha_bars)
        return (share.double() * levels).floor().clamp(max=levels - 1)

    def noise_weight(self, time: Tensor) -> Tensor:
        """``T / 2 (SNR[t - 1] / SNR[t] - 1)``, and ``T / 2`` at level 0, the reconstruction.

        The T steps are those of DDPM with the posterior's variance (arXiv 2006.11239, eq. 5 to 8).
        """
        ratio = self.alpha_bars / (1 - self.alpha_bars)
        step = torch.cat([ratio.new_ones(1), ratio[:-1] / ratio[1:] - 1])
        return 0.5 * len(step) * step.to(time.device)[time.round().long()]
