"""The masked digit policy and the sampler that returns data."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare

from genrl_core import Capability, Plan, Prompt, RecipeError, load_recipe
from genrl_core.run.assembly import build_trainer
from genrl_digits import DigitsDataConfig, DigitsMaskedConfig, data
from genrl_digits.words import NUMBER_WORDS, PREFIX, VOCABULARY, word_ids

ROOT = Path(__file__).parents[3]
PROMPTS = ROOT / "recipes" / "digits" / "prompts"


@pytest.fixture(scope="module")
def policy():
    return DigitsMaskedConfig().build()


def read(name):
    return [json.loads(line) for line in (PROMPTS / name).read_text().splitlines()]


def plan_of(digits, generations, seed=0):
    prompts = tuple(Prompt(f"p{d}", f"a handwritten {NUMBER_WORDS[d]}") for d in digits)
    group = torch.arange(len(digits)).repeat_interleave(generations)
    return Plan(seed, 0, 0, prompts, group, torch.arange(generations).repeat(len(digits)))


def canvas_and_cond(policy, rows=6):
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(0, 65, (rows, 16), generator=generator)
    prompts = [Prompt(str(d), f"the digit {NUMBER_WORDS[d]}") for d in range(rows)]
    return canvas, policy.encode(prompts)


def test_size_and_capabilities(policy):
    count = sum(p.numel() for p in policy.network.parameters())
    assert count == 110_976
    assert Capability.ELBO in DigitsMaskedConfig().provides()
    assert Capability.IMAGE in DigitsMaskedConfig().provides()
    assert not policy.network.training
    assert not any(isinstance(m, torch.nn.Dropout) for m in policy.network.modules())


def test_building_is_deterministic_and_leaves_the_global_generator_alone(policy):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    other = DigitsMaskedConfig().build()
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in policy.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name]), name


def test_logits_are_float32_or_better_and_float64_agrees(policy):
    canvas, cond = canvas_and_cond(policy)
    single = policy.logits(canvas, cond)
    assert single.shape == (6, 16, 64)
    assert single.dtype == torch.float32
    double_policy = DigitsMaskedConfig().build()
    double_policy.network.double()
    double = double_policy.logits(canvas, cond)
    assert double.dtype == torch.float64
    assert (double - single).abs().max() < 1e-4
    half_policy = DigitsMaskedConfig().build()
    half_policy.network.bfloat16()
    assert half_policy.logits(canvas, cond).dtype == torch.float32


def test_every_word_and_every_token_is_seen(policy):
    canvas, cond = canvas_and_cond(policy, 1)
    before = policy.logits(canvas, cond)
    for place in range(16):
        changed = canvas.clone()
        changed[0, place] = (canvas[0, place] + 1) % 65
        assert (policy.logits(changed, cond) - before).abs().amax(-1).min() > 0
    for place in range(PREFIX):
        words = cond["words"].clone()
        words[0, place] = 9
        assert (policy.logits(canvas, {"words": words}) - before).abs().amax(-1).min() > 0


def test_gradient_reaches_every_parameter_and_rows_do_not_mix(policy):
    network = DigitsMaskedConfig().build()
    canvas, cond = canvas_and_cond(network)
    network.logits(canvas, cond).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.network.parameters())
    alone = policy.logits(canvas[2:3], {"words": cond["words"][2:3]})
    assert torch.allclose(alone[0], policy.logits(canvas, cond)[2], atol=1e-5)


def test_encode_pads_and_unconditional_is_the_empty_prompt(policy):
    prompts = [Prompt("a", "THE digit three"), Prompt("b", "a picture of four"), Prompt("c", "")]
    cond = policy.encode(prompts)
    words = cond["words"]
    assert words.shape == (3, PREFIX)
    assert words.dtype == torch.int64
    assert [VOCABULARY[i] for i in words[0]] == ["the", "digit", "three", ""]
    empty = policy.unconditional(cond)
    assert torch.equal(empty["words"], words[2:].expand(3, -1))


@pytest.mark.parametrize("text", ["a handwritten cat", "a digit four."])
def test_unknown_words_are_named_with_the_vocabulary(policy, text):
    with pytest.raises(RecipeError, match=r"'here'.*does not know.*handwritten") as error:
        policy.encode([Prompt("here", text)])
    assert repr(text.split()[-1]) in str(error.value)


def test_too_many_words_are_refused(policy):
    with pytest.raises(RecipeError, match=r"5 words.*at most 4"):
        policy.encode([Prompt("here", "a digit three by hand")])


@pytest.mark.parametrize("name", ["masked", "diffusion", "autoregressive"])
def test_weights_that_nobody_loads_are_refused(name):
    recipe = load_recipe(f"digits/{name}", ["policy.weights=somewhere"])
    with pytest.raises(RecipeError, match=f"somewhere is no folder .* digits_{name} loads no"):
        build_trainer(recipe)


def test_odd_widths_are_refused():
    with pytest.raises(ValidationError, match="multiple of heads"):
        DigitsMaskedConfig(width=30)


def test_prompt_files_have_unseen_phrasings_of_seen_words():
    train, held_out = read("train.jsonl"), read("evaluate.jsonl")
    assert (len(train), len(held_out)) == (40, 20)
    for rows in (train, held_out):
        assert [NUMBER_WORDS[row["digit"]] in row["text"].split() for row in rows] == [True] * len(
            rows
        )
        assert np.bincount([row["digit"] for row in rows]).tolist() == [len(rows) // 10] * 10
        assert all(word_ids(Prompt("x", row["text"])) for row in rows)
    seen = {word for row in train for word in row["text"].split()}
    assert {word for row in held_out for word in row["text"].split()} <= seen
    assert seen == set(VOCABULARY[1:])
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}


def test_decode_gives_the_pixels_of_the_codes(policy):
    found = data.split("judge").images[:5]
    final = policy.tokenize(found)
    media = policy.decode(final)
    assert media.kind == "image"
    assert media.pixels.dtype == torch.uint8
    assert media.pixels.shape == (5, 3, 8, 8)
    assert np.abs(data.to_grey(media) - found).mean() < 1.0


def class_counts(policy, noise, generations=400):
    plan = plan_of([3, 8], generations)
    cond = {"words": torch.zeros(len(plan), PREFIX, dtype=torch.int64)}
    trajectory = DigitsDataConfig(caption_noise=noise).build().rollout(policy, cond, plan)
    assert trajectory.cond is cond
    assert trajectory.trace == {}
    assert trajectory.terms.num_evals == 0
    assert len(trajectory) == len(plan)
    generator = data.split("generator")
    codes = {
        c.tobytes(): d
        for c, d in zip(data.encode(generator.images, 64), generator.labels, strict=True)
    }
    digits = np.array([codes[t.numpy().tobytes()] for t in trajectory.final["tokens"]])
    return [np.bincount(part, minlength=10) for part in digits.reshape(2, -1)]


def test_data_are_of_the_prompted_digit(policy):
    threes, eights = class_counts(policy, 0.0)
    assert threes[3] == 400
    assert eights[8] == 400


def test_noisy_captions_have_the_stated_frequencies(policy):
    for asked, counts in zip((3, 8), class_counts(policy, 0.5), strict=True):
        expected = np.full(10, 0.05)
        expected[asked] = 0.55
        assert chisquare(counts, expected * 400).pvalue > 1e-3
    assert chisquare(class_counts(policy, 1.0)[0]).pvalue > 1e-3


def test_data_are_drawn_widely_and_depend_on_the_plan_alone(policy):
    sampler = DigitsDataConfig(caption_noise=0.5).build()
    plan = plan_of([1, 2], 50)
    cond = {"words": torch.zeros(100, PREFIX, dtype=torch.int64)}
    first = sampler.rollout(policy, cond, plan).final["tokens"]
    torch.manual_seed(99)
    assert torch.equal(sampler.rollout(policy, cond, plan).final["tokens"], first)
    assert len(torch.unique(first, dim=0)) > 60
    rows = torch.tensor([70, 3])
    some = sampler.rollout(policy, {"words": cond["words"][rows]}, plan.select(rows))
    assert torch.equal(some.final["tokens"], first[rows])
    other = sampler.rollout(policy, cond, plan_of([1, 2], 50, seed=1)).final["tokens"]
    assert not torch.equal(other, first)


def test_data_need_a_policy_that_takes_digits():
    with pytest.raises(RecipeError, match="genrl_digits"):
        DigitsDataConfig().build().rollout(object(), {}, plan_of([1], 2))


def test_a_supervised_step_lowers_the_bound_loss():
    policy = DigitsMaskedConfig().build()
    plan = plan_of(range(10), 4)
    cond = policy.encode(plan.sample_prompts())
    final = DigitsDataConfig().build().rollout(policy, cond, plan).final
    optimizer = torch.optim.AdamW(policy.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        corruption = policy.corrupt(final, plan.streams("corrupt"), 1, 0, 1)
        rows = {name: tensor[0] for name, tensor in corruption.items()}
        loss = -policy.elbo(final, cond, rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(16 * np.log(64), rel=0.1)
    assert losses[-1] < 0.85 * losses[0]


def test_entry_module_loads_no_heavy_library():
    code = (
        "import sys, genrl_digits; "
        "print([m for m in ('torch', 'sklearn', 'numpy', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
