"""Multistep solvers of diffusers: fast rollouts for objectives that need finished samples alone."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from genrl_core import Plan, Policy, Sampler, Tensors, Terms, Trajectory
from genrl_diffusion.policy import DiffusionPolicy, guided_prediction
from genrl_diffusion.sampler import check_step, initial_noise
from genrl_diffusion.variance_preserving import VariancePreservingPolicy

if TYPE_CHECKING:
    from genrl_diffusion import DiffusersSolverConfig

SCHEDULERS = {
    "dpm_solver": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
}
PREDICTIONS = {
    "velocity": "flow_prediction", "epsilon": "epsilon", "v": "v_prediction", "sample": "sample",
}  # fmt: skip
FLOW_TIMESTEPS = 1000
"""In what units diffusers counts the time of flow matching."""


class SolverSampler(Sampler):
    """DPM-Solver++ (arXiv 2211.01095), UniPC (2302.04867) or DEIS (2204.13902), deterministic.

    ``final`` is ``latents`` ``[B, *shape]``; there is no trace and there are no terms. Flow models
    use diffusers' flow schedule; the others their own table of noise levels.
    """

    def __init__(self, config: "DiffusersSolverConfig"):
        self.config = config
        self.num_steps = config.num_inference_steps

    def rollout(self, policy: Policy, cond: Tensors, plan: Plan, grad_steps: int = 0) -> Trajectory:
        known = cast(DiffusionPolicy, policy)
        x, _ = self._walk(known, cond, plan, self.num_steps, grad_steps)
        return Trajectory(cond, {}, {"latents": x}, Terms.empty(len(plan), x.device))

    def preview(
        self, policy: Policy, cond: Tensors, plan: Plan, step: int, grad_steps: int = 1
    ) -> Tensors:
        """``latents``: x0_hat as the network sees it where step ``step`` begins."""
        known = cast(DiffusionPolicy, policy)
        check_step(step, self.num_steps)
        x, scheduler = self._walk(known, cond, plan, step, grad_steps - 1)
        with torch.set_grad_enabled(grad_steps > 0):
            time = _time(known, scheduler, step).to(x).expand(len(plan))
            found = guided_prediction(known, x, time, cond, self.config.guidance_scale)
            data, _ = known.split(found, x, *known.alpha_sigma(time))
        return {"latents": data}

    def _walk(
        self, policy: DiffusionPolicy, cond: Tensors, plan: Plan, steps: int, grad_steps: int
    ) -> tuple[Tensor, Any]:
        """The latents after the first ``steps`` steps, and the scheduler that took them."""
        streams, same = plan.streams("rollout"), self.config.same_noise
        x = initial_noise(policy, self.config, streams.shared if same else streams)
        scheduler = self.scheduler(policy)
        scheduler.set_timesteps(self.num_steps, device=x.device)
        for step, timestep in enumerate(scheduler.timesteps[:steps]):
            with torch.set_grad_enabled(step >= steps - grad_steps):
                time = _time(policy, scheduler, step).to(x).expand(len(plan))
                found = guided_prediction(policy, x, time, cond, self.config.guidance_scale)
                x = scheduler.step(found, timestep, x, return_dict=False)[0].to(x.dtype)
        return x, scheduler

    def scheduler(self, policy: DiffusionPolicy) -> Any:
        """A fresh scheduler of diffusers for this policy: it remembers the steps it has taken."""
        import diffusers

        fields: dict[str, Any] = {
            "prediction_type": PREDICTIONS[policy.prediction],
            "solver_order": self.config.solver_order,
        }
        if isinstance(policy, VariancePreservingPolicy):
            policy.times(self.config.num_inference_steps, self.config.shift)  # refuses what it must
            before = torch.cat([policy.alpha_bars.new_ones(1), policy.alpha_bars[:-1]])
            fields["trained_betas"] = (1 - policy.alpha_bars / before).numpy()
            fields["num_train_timesteps"] = len(policy.alpha_bars)
        else:
            fields |= {
                "use_flow_sigmas": True, "flow_shift": self.config.shift,
                "num_train_timesteps": FLOW_TIMESTEPS,
            }  # fmt: skip
        return getattr(diffusers, SCHEDULERS[self.config.scheduler])(**fields)


def _time(policy: DiffusionPolicy, scheduler: Any, step: int) -> Tensor:
    """The time of a step in the policy's units; diffusers rounds that of flow matching."""
    if isinstance(policy, VariancePreservingPolicy):
        return torch.as_tensor(scheduler.timesteps[step])
    return torch.as_tensor(scheduler.sigmas[step])
