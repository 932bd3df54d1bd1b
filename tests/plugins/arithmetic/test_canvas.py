"""The masked answer: its characters, what it may see, its bound, and a recipe that learns."""

import itertools
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from genrl_arithmetic import ArithmeticMaskedConfig, task
from genrl_core import Capability, GenRLError, Media, Plan, Prompt, RecipeError, load_recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import check_sampler
from genrl_masked import ConfidenceConfig

PROMPTS = [Prompt("a", "1+2="), Prompt("b", "12+19="), Prompt("c", "7+10=")]
MASK = task.END + 1
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy():
    return ArithmeticMaskedConfig().build()


def test_it_makes_text():
    provided = ArithmeticMaskedConfig().provides()
    assert provided == {Capability.ELBO, Capability.DENOISING, Capability.TEXT}


def test_texts_there_and_back(policy):
    final = policy.tokenize(["3", "31", "198"])
    end = task.END
    assert final["tokens"].tolist() == [[3, end, end], [3, 1, end], [1, 9, 8]]
    assert policy.decode(final) == Media("text", texts=("3", "31", "198"))
    after_the_end = torch.tensor([[1, end, 9], [end, 4, 2]])
    assert policy.decode({"tokens": after_the_end}).texts == ("1", "")
    with pytest.raises(GenRLError, match="1998 has 4 digits; an answer has 3 characters"):
        policy.tokenize(["1998"])


def test_prompts_end_where_the_answer_begins(policy):
    prompt = policy.encode(PROMPTS)["prompt"]
    assert prompt.tolist()[0] == [task.END, task.END, 1, 11, 2, 12]
    assert prompt.tolist()[1] == [1, 2, 11, 1, 9, 12]
    with pytest.raises(
        GenRLError, match=r"7 characters; .* at most 6: raise policy\.prompt_length"
    ):
        policy.encode([Prompt("long", "100+20=")])
    with pytest.raises(ValidationError, match="multiple of heads"):
        ArithmeticMaskedConfig(width=30)


def test_an_empty_and_a_hidden_prompt(policy):
    cond = policy.encode(PROMPTS)
    assert torch.equal(policy.unconditional(cond)["prompt"], torch.full((3, 6), task.END))
    where = torch.tensor([[True, False, True, False, False, True]]).expand(3, -1)
    hidden = policy.mask_prompt(cond, where)["prompt"].tolist()
    assert hidden[0] == [task.END, task.END, 13, 11, 2, 13]
    assert hidden[1] == [13, 2, 13, 1, 9, 13]
    config = ArithmeticMaskedConfig(elbo={"prompt_masking": 0.5})
    guided = ConfidenceConfig(num_inference_steps=3, transition="p2", guidance_scale=2.0)
    check_sampler(config.build(), guided.build(), PROMPTS, samples=4, tolerance=1e-5)


def test_every_position_sees_prompt_and_canvas_on_both_sides(policy):
    """What changes anywhere changes the logits everywhere; the mask is no character of a prompt."""
    cond = policy.encode(PROMPTS[:1])
    canvas = torch.tensor([[MASK, 1, MASK]])
    before = policy.logits(canvas, cond)
    assert before.shape == (1, 3, MASK) and before.dtype == torch.float32
    for changed in (torch.tensor([[MASK, 2, MASK]]), torch.tensor([[MASK, MASK, MASK]])):
        moved = (policy.logits(changed, cond) - before).abs().amax(-1)
        assert moved.min() > 1e-4
    other = (policy.logits(canvas, policy.encode([Prompt("x", "2+1=")])) - before).abs()
    assert other.amax(-1).min() > 1e-4
    embedding = policy.network.encoder.get_input_embeddings().weight
    assert len(embedding) == task.VOCABULARY + 1
    full = torch.tensor([[3, 1, 2]])
    with torch.no_grad():
        unmasked = policy.logits(full, cond)
        embedding[task.VOCABULARY].neg_()  # the mask's own, which a full canvas has no part in
        assert (policy.logits(canvas, cond) - before).abs().max() > 1e-3
        assert torch.equal(policy.logits(full, cond), unmasked)
        embedding[task.VOCABULARY].neg_()


@pytest.mark.parametrize("transition", ["p1", "p2"])
def test_conformance(policy, transition):
    sampler = ConfidenceConfig(num_inference_steps=3, transition=transition, temperature=0.8)
    check_sampler(policy, sampler.build(), PROMPTS, samples=4, tolerance=1e-5)


def test_one_character_at_a_time_is_a_distribution_over_answers():
    """Two characters, released left or right first as the noise has it: exact by enumeration.

    Drawn frequencies of all 121 answers agree with the sum over both orders, where every order has
    probability one half: without confidence the first position is uniform.
    """
    policy = ArithmeticMaskedConfig(width=16, layers=1, answer_length=2).build()
    with torch.no_grad():
        for parameter in policy.network.encoder.cls.parameters():
            parameter.mul_(0.3)  # nearly uniform, so that all answers occur
    config = ConfidenceConfig(num_inference_steps=2, transition="p2", gumbel_temperature=1e6)
    samples = 6000
    plan = Plan(
        3, 0, 0, tuple(PROMPTS[:1]), torch.zeros(samples, dtype=torch.int64), torch.arange(samples)
    )
    cond = {"prompt": policy.encode(PROMPTS[:1])["prompt"].expand(samples, -1)}
    with torch.no_grad():
        drawn = config.build().rollout(policy, cond, plan).final["tokens"]
        exact = by_enumeration(policy)
    found = torch.bincount(drawn[:, 0] * MASK + drawn[:, 1], minlength=MASK**2) / samples
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-5)
    chi_square = float(((found - exact).square() / exact).sum() * samples)
    assert chi_square < 120 + 4 * (2 * 120) ** 0.5


def by_enumeration(policy):
    """The probability of every answer of two characters, first character first: ``[V * V]``."""
    one = policy.encode(PROMPTS[:1])
    pairs = torch.tensor(list(itertools.product(range(MASK), repeat=2)))
    total = torch.zeros(len(pairs))
    blank = policy.logits(torch.full((1, 2), MASK), one).softmax(-1)[0]
    for first in (0, 1):
        second = 1 - first
        canvas = torch.full_like(pairs, MASK)
        canvas[:, first] = pairs[:, first]
        cond = {"prompt": one["prompt"].expand(len(pairs), -1)}
        rest = policy.logits(canvas, cond).softmax(-1)[:, second]
        then = rest.gather(1, pairs[:, second : second + 1]).flatten()
        total += 0.5 * blank[first, pairs[:, first]] * then
    return total


def test_data_of_another_kind_are_refused():
    for policy, sampler, fitting in (
        ("arithmetic_masked", "digits_data", "arithmetic_data_masked"),
        ("digits_masked", "arithmetic_data_masked", "digits_data"),
    ):
        overrides = [f"policy.use={policy}", f"sampler.use={sampler}"]
        recipe = load_recipe("arithmetic/masked_base", overrides)
        with pytest.raises(RecipeError, match=f"{sampler} returns data .* Choose {fitting}"):
            build_trainer(recipe)


def test_mask_grpo_raises_accuracy(tmp_path):
    """In small: 21 sums of one-digit numbers, and a base that saw each of them 180 times.

    recipes/README.md has the recipe in full, on unseen sums.
    """
    prompts = (ROOT / "recipes" / "arithmetic" / "prompts" / "train.txt").read_text().split()
    small = tmp_path / "small.txt"
    small.write_text("\n".join([text for text in prompts if len(text) == len("1+2=")][::4]))
    more = ["run.seed=10", f"prompts.file={small}", "train.num_prompts=64"]
    base = build_trainer(load_recipe("arithmetic/masked_base", [*more, "train.iterations=60"]))
    for _ in range(60):
        base.step()
    more += [f"prompts.evaluate={small}", "train.num_prompts=20", "train.learning_rate=1e-3"]
    trained = base.parts.policy
    trainer = build_trainer(load_recipe("arithmetic/mask_grpo", more), policy=trained)
    before = trainer.evaluate().metrics["correct"]
    records = [trainer.step() for _ in range(16)]
    after = trainer.evaluate().metrics["correct"]
    assert max(record.metrics.get("drift", 0.0) for record in records) < 2e-5
    assert records[0].media.kind == "text"
    print(f"correct: {before:.3f} -> {after:.3f}")
    assert after > before + 0.2
