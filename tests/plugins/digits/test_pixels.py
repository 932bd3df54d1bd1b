"""The diffusion digit policy and its data."""

import numpy as np
import pytest
import torch

from genrl_core import Capability, Plan, Prompt, RecipeError, load_recipe
from genrl_core.loop.settings import LoraConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.check import check_recipe
from genrl_core.testing import check_sampler
from genrl_diffusion import DdimConfig, FlowSdeConfig, WindowConfig
from genrl_digits import (
    DigitsDataDiffusionConfig,
    DigitsDiffusionConfig,
    DigitsDiffusionVpConfig,
    data,
)
from genrl_digits.words import NUMBER_WORDS

BOTH = [DigitsDiffusionConfig, DigitsDiffusionVpConfig]


def built(config):
    """A policy whose output is not only what it begins with, as after training."""
    policy, generator = config().build(), torch.Generator().manual_seed(1)
    spread = 0.01 if policy.prediction == "epsilon" else 0.1
    with torch.no_grad():
        policy.network.leave.weight.normal_(0, spread, generator=generator)
        policy.network.skip.weight.normal_(0, spread, generator=generator)
    return policy


@pytest.fixture(scope="module", params=BOTH, ids=["flow", "vp"])
def policy(request):
    return built(request.param)


def plan_of(digits, generations):
    prompts = tuple(Prompt(f"p{d}", f"a handwritten {NUMBER_WORDS[d]}") for d in digits)
    group = torch.arange(len(digits)).repeat_interleave(generations)
    return Plan(0, 0, 0, prompts, group, torch.arange(generations).repeat(len(digits)))


def latents_of(policy, rows=6):
    generator = torch.Generator().manual_seed(0)
    time = policy.time_at(torch.linspace(0.1, 0.9, rows)).float()
    return torch.randn(rows, 1, 8, 8, generator=generator), time


@pytest.mark.parametrize("config", BOTH)
def test_size_and_capabilities(config):
    policy = config().build()
    assert sum(p.numel() for p in policy.network.parameters()) == 508_993
    given = config().provides()
    assert given == {
        Capability.ELBO, Capability.DENOISING, Capability.CLEAN_SAMPLE, Capability.IMAGE,
        Capability.DIFFERENTIABLE,
    }  # fmt: skip
    assert not policy.network.training
    assert not any(isinstance(m, torch.nn.Dropout) for m in policy.network.modules())


def test_building_is_deterministic_and_leaves_the_global_generator_alone():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, second = (DigitsDiffusionConfig().build().network.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pixels_time_and_every_word_are_seen_and_rows_do_not_mix(policy):
    x, time = latents_of(policy)
    later = policy.time_at(torch.linspace(0.15, 0.95, 6)).float()
    cond = policy.encode([Prompt(str(d), f"the digit {NUMBER_WORDS[d]}") for d in range(6)])
    before = policy.predict(x, time, cond)
    assert before.shape == x.shape
    assert (policy.predict(x, later, cond) - before).abs().amax((1, 2, 3)).min() > 0
    for place in range(3):
        words = cond["words"].clone()
        words[:, place] = 14
        changed = policy.predict(x, time, {"words": words})
        assert (changed - before).abs().amax((1, 2, 3)).min() > 0
    alone = policy.predict(x[2:3], time[2:3], {"words": cond["words"][2:3]})
    torch.testing.assert_close(alone[0], before[2], rtol=1e-5, atol=1e-5)
    empty = policy.encode([Prompt("e", "")])["words"].expand(6, -1)
    assert torch.equal(policy.unconditional(cond)["words"], empty)


def test_real_digits_survive_the_way_to_latents_and_back(policy):
    found = data.split("judge").images[:5]
    final = policy.tokenize(found)
    assert final["latents"].dtype == torch.float32
    assert (final["latents"].min(), final["latents"].max()) == (-1, 1)
    media = policy.decode(final)
    assert np.abs(data.to_grey(media) - found).max() < 0.05
    soft = policy.decode_pixels({"latents": final["latents"].requires_grad_()})
    torch.testing.assert_close(soft * 255, media.pixels.float(), rtol=0, atol=0.51)
    assert soft.requires_grad


@pytest.mark.parametrize("config", [FlowSdeConfig, DdimConfig])
def test_drift_is_small_in_float32(policy, config):
    window = WindowConfig(size=2)
    sampler = config(num_inference_steps=6, guidance_scale=2.0, window=window).build()
    found = check_sampler(policy, sampler, [Prompt("1", "a digit one"), Prompt("2", "a two")])
    assert found.drift <= 1e-5


def test_data_are_of_the_prompted_digit(policy):
    plan = plan_of([3, 8], 20)
    cond = policy.encode(plan.sample_prompts())
    trajectory = DigitsDataDiffusionConfig().build().rollout(policy, cond, plan)
    assert trajectory.terms.num_evals == 0
    generator = data.split("generator")
    known = {
        image.tobytes(): int(digit)
        for image, digit in zip(generator.images, generator.labels, strict=True)
    }
    images = data.to_grey(policy.decode(trajectory.final)).round()
    assert [known[image.tobytes()] for image in images] == [3] * 20 + [8] * 20


def test_the_noise_levels_are_those_of_ddpm():
    from diffusers import DDPMScheduler

    policy = DigitsDiffusionVpConfig().build()
    expected = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").alphas_cumprod
    torch.testing.assert_close(policy.alpha_bars.float(), expected, rtol=1e-5, atol=1e-7)
    assert policy.prediction == "epsilon"


@pytest.mark.parametrize("config", [FlowSdeConfig, DdimConfig])
def test_pixels_are_differentiable_through_the_sampler(config):
    """Through every step, by central differences along the gradient, in float64."""
    for schema in BOTH:
        policy, plan = built(schema), plan_of([3, 8], 2)
        policy.network.double()
        cond = policy.encode(plan.sample_prompts())
        sampler, weight = config(num_inference_steps=3).build(), policy.network.leave.weight
        pixels = policy.decode_pixels(sampler.rollout(policy, cond, plan, grad_steps=3).final)
        assert pixels.shape == (4, 3, 8, 8)
        (gradient,) = torch.autograd.grad(pixels.square().sum(), weight)
        step, totals = 1e-6 * gradient / gradient.norm(), []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step
                final = sampler.rollout(policy, cond, plan).final
                totals.append(float(policy.decode_pixels(final).square().sum()))
                weight -= sign * step
        assert gradient.norm() > 0.1
        found = (totals[0] - totals[1]) / 2e-6
        assert found == pytest.approx(float(gradient.norm()), rel=1e-5)


@pytest.mark.parametrize("config", BOTH)
def test_supervised_steps_lower_the_error(config):
    policy, plan = config().build(), plan_of(range(10), 4)
    cond = policy.encode(plan.sample_prompts())
    final = DigitsDataDiffusionConfig().build().rollout(policy, cond, plan).final
    optimizer = torch.optim.AdamW(policy.network.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        corruption = policy.corrupt(final, plan.streams("corrupt"), 1, 0, 1)
        rows = {name: tensor[0] for name, tensor in corruption.items()}
        loss = -policy.elbo(final, cond, rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Before the first step velocity is 0, with the target's square as error, and noise is x.
    vp = policy.prediction == "epsilon"
    assert losses[0] == pytest.approx(0.37 if vp else 1.6, rel=0.2)
    assert losses[-1] < (0.95 if vp else 0.8) * losses[0]


@pytest.mark.parametrize("config", BOTH)
def test_adapters_take_every_linear_module_but_the_value_head(config):
    policy = config(layers=2, value_head=True).build()
    weight_sets = WeightSets(policy, LoraConfig(rank=2))
    adapted = {name.split(".lora_")[0] for name in weight_sets.trainable if "lora_" in name}
    blocks = {f"{kind}.{layer}" for kind in ("shifts", "up") for layer in (0, 1)}
    assert adapted == blocks | {"time", "condition", "enter", "leave", "skip"}


@pytest.mark.parametrize(
    ("override", "said"),
    [("sampler.shift=3.0", "sampler.shift: 3 moves the times of flow matching.*leave shift at 1"),
     ("sampler.num_inference_steps=1001", "1001 steps are more than the 1000 noise levels.*most")],
)  # fmt: skip
def test_check_refuses_what_a_table_of_noise_levels_cannot_do(override, said):
    check_recipe(load_recipe("digits/ddpo", ["sampler.num_inference_steps=1000"]))
    with pytest.raises(RecipeError, match=said):
        check_recipe(load_recipe("digits/ddpo", [override]))
    if "shift" in override:
        check_recipe(load_recipe("digits/flow_grpo", [override]))
