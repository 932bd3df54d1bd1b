"""What diffusion samplers draw is distributed as their densities say, by chi-square.

Tokens and unmasking steps are enumerated and tested likewise in ``autoregressive/test_sampler.py``,
``masked/test_sampler.py`` and ``masked/test_release.py``.
"""

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from genrl_core import Capability, Prompt
from genrl_core.loop.generate import generate
from genrl_core.loop.plan import plan_of
from genrl_core.registry import Registry

REGISTRY = Registry.discover()
PROMPTS = (Prompt("3", "a handwritten three"), Prompt("1", "a drawn one"))
STEPS, SAMPLES, BINS = 3, 40, 20


def kernels() -> list[str]:
    """Every diffusion sampler whose steps have densities."""
    every = {n: s for n, s in REGISTRY.samplers.items() if s.paradigm == "diffusion"}
    plain = {n: s(num_inference_steps=STEPS) for n, s in every.items() if not s.supervised}
    return [n for n, config in plain.items() if Capability.STEP_LOGP in config.provides()]


def p_value(normal: Tensor) -> float:
    """Of the hypothesis that the numbers are standard normal, by bins of equal probability."""
    share = torch.special.ndtr(normal.double().flatten())
    counts = torch.histc(share, BINS, 0.0, 1.0)
    return float(chisquare(counts.numpy()).pvalue)


def standardised(name: str, noise: float = 1.0) -> list[Tensor]:
    """The initial latents and every noisy step of a rollout, as what should be N(0, 1)."""
    policy = REGISTRY.policies["digits_diffusion"]().build()
    sampler = REGISTRY.samplers[name](num_inference_steps=STEPS, guidance_scale=2.0).build()
    trajectory, _ = generate(policy, sampler, plan_of(4, 0, 0, PROMPTS, SAMPLES), 2 * SAMPLES)
    b = torch.arange(len(trajectory))
    found = []
    for step in range(STEPS):
        k = torch.full_like(b, step)
        state, action = sampler.restore(trajectory.trace, k, b)
        with torch.no_grad():
            move = sampler.transition(policy, state, k, trajectory.cond)
        if step == 0:
            found.append(state["latents"])
        if move.noisy.all():
            found.append((action["latents"] - move.mean) / (noise * move.deviation[0]))
    return found


@pytest.mark.parametrize("name", kernels())
def test_latents_are_distributed_as_their_densities_say(name: str) -> None:
    found = standardised(name)
    assert len(found) == STEPS, "the first latents and all steps but the last"
    for normal in found:
        assert normal.numel() > 5000
        assert p_value(normal) > 1e-3
    # Neighbouring pixels, successive steps and different samples are independent.
    first, second = found[0].flatten(1), found[1].flatten(1)
    for one, other in ((first[:, ::2], first[:, 1::2]), (first, second), (first[::2], first[1::2])):
        assert p_value((one + other) / 2**0.5) > 1e-3


def test_a_density_of_the_wrong_width_would_be_noticed() -> None:
    assert p_value(standardised("flow_sde", noise=1.1)[1]) < 1e-6
