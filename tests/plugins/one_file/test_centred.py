"""The plugin's own tests: mathematics, conformance, and the core's matrix of combinations."""

import pytest
import torch
from genrl_centred import CenteredDistillationConfig, DdpmLargeConfig

from genrl_core import Batch, Prompt
from genrl_core.cli.matrix import cells
from genrl_core.runs import registry
from genrl_core.testing import check_objective, check_sampler, toys
from genrl_diffusion import FlowSdeConfig
from genrl_digits import DigitsDiffusionConfig


def batch_of(log_probs: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> Batch:
    """Two groups of three samples with two terms each."""
    ones = torch.ones_like(log_probs)
    return Batch(
        log_probs=log_probs, old_log_probs=old, events=ones.long(), step=ones.long(),
        mask=ones.bool(),
        denominator_mask=ones.bool(), weight=ones, scale=ones, advantage=advantage.expand_as(ones),
        reward=advantage, group=torch.tensor([0, 0, 0, 1, 1, 1]), valid=torch.ones(6).bool(),
    )  # fmt: skip


def test_the_tilted_policy_has_no_loss() -> None:
    """log p = log old + A / beta - log Z of its group, spread over the terms: nothing to learn."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1, 0, 2, -1.5, -0.5], dtype=torch.float64)
    tilt = advantage / 0.5 / 2 + torch.tensor([0.3, 0.3, 0.3, -2, -2, -2])
    objective = CenteredDistillationConfig(beta=0.5).build()
    leaf = (old + tilt).requires_grad_()
    loss, _ = objective.loss(batch_of(leaf, old, advantage))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-20)
    assert gradient.abs().max() < 1e-12
    assert float(objective.loss(batch_of(old, old, advantage))[0]) > 0.1


def test_at_the_old_weights_it_is_reinforce() -> None:
    old = torch.zeros(2, 6, dtype=torch.float64)
    advantage = torch.tensor([1.0, -1, 0, 2, -1.5, -0.5], dtype=torch.float64)
    leaf = old.clone().requires_grad_()
    loss, _ = CenteredDistillationConfig(beta=3.0).build().loss(batch_of(leaf, old, advantage))
    (gradient,) = torch.autograd.grad(loss, leaf)
    # The log-ratio of a sample stands in each of its 2 terms: the mean over them counts it once.
    torch.testing.assert_close(gradient, -advantage.expand(2, 6) / 6, rtol=0, atol=1e-12)


@pytest.mark.parametrize("index", range(3))
def test_it_climbs_on_every_toy(index: int) -> None:
    policy, sampler = toys()[index]
    for view in ("steps", "elbo"):
        check_objective(CenteredDistillationConfig(view=view), policy, sampler, view)


def test_the_kernel_has_the_variance_of_diffusers() -> None:
    """``DDPMScheduler(variance_type="fixed_large")`` on its own table of noise levels."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(50, variance_type="fixed_large", clip_sample=False)
    scheduler.set_timesteps(50)
    alpha_bars = scheduler.alphas_cumprod.double()
    config = DdpmLargeConfig(num_inference_steps=10)
    for t in (1, 10, 30, 49):
        sizes = alpha_bars[t].sqrt(), (1 - alpha_bars[t]).sqrt()
        ends = alpha_bars[t - 1].sqrt(), (1 - alpha_bars[t - 1]).sqrt()
        now, after = (float(s / (a + s)) for a, s in (sizes, ends))
        a, b, s = (x * float(sum(ends)) for x in config.coefficients(now, after))
        assert s**2 == pytest.approx(float(scheduler._get_variance(t)), rel=1e-4)
        data, noise = torch.tensor([[0.7]]), torch.tensor([[-1.1]])
        x = sizes[0] * data + sizes[1] * noise
        mean = scheduler.step(noise, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        z = torch.randn(1, 1, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(a * data + b * noise + s * z, mean.float(), rtol=1e-4, atol=1e-6)
    assert config.coefficients(0.5, 0.0) == (1.0, 0.0, 0.0)


def test_the_sampler_scores_what_it_drew() -> None:
    prompts = [Prompt("3", "a handwritten three"), Prompt("1", "a drawn one")]
    policy = DigitsDiffusionConfig().build()
    sampler = DdpmLargeConfig(num_inference_steps=4).build()
    assert check_sampler(policy, sampler, prompts).drift <= 1e-5
    assert (
        DdpmLargeConfig(num_inference_steps=4).provides()
        == FlowSdeConfig(num_inference_steps=4).provides()
    )


def test_the_matrix_holds_both() -> None:
    """Every paradigm trains the objective, and the kernel trains what its kin trains."""
    found = cells(registry())
    mine = {cell.paradigm for cell in found if cell.objective == "crd" and cell.verdict == "trains"}
    assert mine == {"masked", "diffusion", "autoregressive"}
    verdicts = {
        name: {(c.policy, c.objective, c.view): c.verdict for c in found if c.sampler == name}
        for name in ("ddpm_large", "flow_sde")
    }
    assert verdicts["ddpm_large"] == verdicts["flow_sde"]
    assert "trains" in verdicts["ddpm_large"].values()
