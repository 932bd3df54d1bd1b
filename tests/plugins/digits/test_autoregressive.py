"""The autoregressive digit policy: its prefix, its codes, its data, and two iterations of GRPO."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from genrl_autoregressive import TokenConfig, teacher_forced
from genrl_core import Capability, Plan, Prompt, load_recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import check_sampler
from genrl_digits import DigitsAutoregressiveConfig, DigitsDataAutoregressiveConfig, data
from genrl_digits.words import PREFIX

PROMPTS = [Prompt("a", "a handwritten three"), Prompt("b", "a picture of four"), Prompt("c", "")]


@pytest.fixture(scope="module")
def policy():
    return DigitsAutoregressiveConfig().build()


def test_size_and_capabilities(policy):
    count = sum(p.numel() for p in policy.network.parameters())
    assert count == 112_128
    given = {Capability.ELBO, Capability.DENOISING, Capability.IMAGE}
    assert DigitsAutoregressiveConfig().provides() == given
    assert not policy.network.training
    assert not any(m.p for m in policy.network.modules() if isinstance(m, torch.nn.Dropout))


def test_building_is_deterministic_and_leaves_the_global_generator_alone(policy):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    other = DigitsAutoregressiveConfig().build()
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in policy.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name]), name


def test_short_prompts_are_filled_with_the_empty_word(policy):
    cond = policy.encode(PROMPTS)
    assert cond["prompt"].shape == (3, PREFIX)
    assert cond["prompt"].min() == 64
    assert cond["prompt_mask"].all()
    empty = policy.unconditional(cond)
    assert torch.equal(empty["prompt"], cond["prompt"][2:].expand(3, -1))


def test_every_word_and_every_earlier_token_is_seen_and_no_later_one(policy):
    cond = policy.encode(PROMPTS[1:2])
    tokens = torch.arange(16).unsqueeze(0)
    before = teacher_forced(policy, tokens, cond)
    assert before.shape == (1, 16, 64)
    for place in range(16):
        changed = tokens.clone()
        changed[0, place] += 20
        moved = (teacher_forced(policy, changed, cond) - before).abs().amax(-1)[0]
        assert (moved[: place + 1] == 0).all()
        assert (moved[place + 1 :] > 0).all()
    for place in range(PREFIX):
        words = {**cond, "prompt": cond["prompt"].clone()}
        words["prompt"][0, place] = 64 + 9
        assert (teacher_forced(policy, tokens, words) - before).abs().amax(-1).min() > 0


@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 3.0, "temperature": 0.7}])
def test_conformance(policy, fields):
    check_sampler(policy, TokenConfig(**fields).build(), PROMPTS, tolerance=1e-5)


def test_data_are_real_digits(policy):
    prompts = tuple(Prompt(str(d), f"a drawn {w}") for d, w in ((3, "three"), (8, "eight")))
    group = torch.arange(2).repeat_interleave(50)
    plan = Plan(0, 0, 0, prompts, group, torch.arange(50).repeat(2))
    cond = policy.encode(plan.sample_prompts())
    final = DigitsDataAutoregressiveConfig().build().rollout(policy, cond, plan).final
    assert final["length"].tolist() == [16] * 100
    images = data.to_grey(policy.decode(final))
    known = data.split("generator")
    codes = {
        c.tobytes(): d for c, d in zip(data.encode(known.images, 64), known.labels, strict=True)
    }
    found = [codes[row.numpy().tobytes()] for row in final["tokens"]]
    assert found == [3] * 50 + [8] * 50
    assert images.shape == (100, 8, 8)
    assert np.isfinite(images).all()


def test_odd_widths_are_refused():
    with pytest.raises(ValidationError, match="multiple of heads"):
        DigitsAutoregressiveConfig(width=30)


def test_the_recipe_trains_two_iterations():
    trainer = build_trainer(
        load_recipe("digits/grpo", ["policy.weights=null", "filter.min_std=0.0"])
    )
    before = {n: p.detach().clone() for n, p in trainer.weight_sets.trainable.items()}
    for _ in range(2):
        record = trainer.step()
        assert record.problem is None
        assert record.metrics["drift"] < 1e-5
        assert 0 < record.metrics["grad_norm"] < 1e3
    assert any(not torch.equal(p, before[n]) for n, p in trainer.weight_sets.trainable.items())
