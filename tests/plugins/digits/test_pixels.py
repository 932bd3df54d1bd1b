"""The diffusion digit policy and its data."""

import numpy as np
import pytest
import torch

from genrl_core import Capability, Plan, Prompt, RecipeError
from genrl_core.testing import check_sampler
from genrl_diffusion import DdimConfig, FlowSdeConfig, WindowConfig
from genrl_digits import DigitsDataDiffusionConfig, DigitsDiffusionConfig, data
from genrl_digits.words import NUMBER_WORDS


@pytest.fixture(scope="module")
def policy():
    """With an output that is not zero, as after training."""
    policy = DigitsDiffusionConfig().build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        policy.network.leave.weight.normal_(0, 0.1, generator=generator)
        policy.network.skip.weight.normal_(0, 0.1, generator=generator)
    return policy


def plan_of(digits, generations):
    prompts = tuple(Prompt(f"p{d}", f"a handwritten {NUMBER_WORDS[d]}") for d in digits)
    group = torch.arange(len(digits)).repeat_interleave(generations)
    return Plan(0, 0, 0, prompts, group, torch.arange(generations).repeat(len(digits)))


def latents_of(rows=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 1, 8, 8, generator=generator), torch.linspace(0.1, 0.9, rows)


def test_size_and_capabilities():
    policy = DigitsDiffusionConfig().build()
    assert sum(p.numel() for p in policy.network.parameters()) == 508_993
    given = DigitsDiffusionConfig().provides()
    assert given == {Capability.BOUND, Capability.MATCHING, Capability.IMAGE}
    assert not policy.network.training
    assert not any(isinstance(m, torch.nn.Dropout) for m in policy.network.modules())


def test_building_is_deterministic_and_leaves_the_global_generator_alone():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, second = (DigitsDiffusionConfig().build().network.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pixels_time_and_every_word_are_seen_and_rows_do_not_mix(policy):
    x, time = latents_of()
    cond = policy.encode([Prompt(str(d), f"the digit {NUMBER_WORDS[d]}") for d in range(6)])
    before = policy.velocity(x, time, cond)
    assert before.shape == x.shape
    assert (policy.velocity(x, time + 0.05, cond) - before).abs().amax((1, 2, 3)).min() > 0
    for place in range(3):
        words = cond["words"].clone()
        words[:, place] = 14
        changed = policy.velocity(x, time, {"words": words})
        assert (changed - before).abs().amax((1, 2, 3)).min() > 0
    alone = policy.velocity(x[2:3], time[2:3], {"words": cond["words"][2:3]})
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
    assert trajectory.terms.calls == 0
    generator = data.split("generator")
    known = {
        image.tobytes(): int(digit)
        for image, digit in zip(generator.images, generator.labels, strict=True)
    }
    images = data.to_grey(policy.decode(trajectory.final)).round()
    assert [known[image.tobytes()] for image in images] == [3] * 20 + [8] * 20


def test_supervised_steps_lower_the_error():
    policy, plan = DigitsDiffusionConfig().build(), plan_of(range(10), 4)
    cond = policy.encode(plan.sample_prompts())
    final = DigitsDataDiffusionConfig().build().rollout(policy, cond, plan).final
    optimizer = torch.optim.AdamW(policy.network.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        corruption = policy.corrupt(final, plan.streams("corrupt"), 1, 0, 1)
        rows = {name: tensor[0] for name, tensor in corruption.items()}
        loss = -policy.bound(final, cond, rows).log_probs.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.6, rel=0.2)
    assert losses[-1] < 0.8 * losses[0]


def test_weights_that_it_cannot_load_are_refused():
    with pytest.raises(RecipeError, match="recipe:digits/diffusion_base"):
        DigitsDiffusionConfig(weights="somewhere").build()
