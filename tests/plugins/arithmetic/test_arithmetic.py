"""Sums as a text task: characters, data, the rule, and recipes that learn."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genrl_arithmetic import (
    ArithmeticCorrectConfig,
    ArithmeticDataConfig,
    ArithmeticLmConfig,
    ArithmeticMaskedConfig,
    task,
)
from genrl_autoregressive import TokenConfig
from genrl_core import GenRLError, Media, Plan, Prompt, RecipeError, RewardError, load_recipe
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import check_sampler

ROOT = Path(__file__).parents[3]
PROMPTS = [Prompt("a", "1+2="), Prompt("b", "12+19="), Prompt("c", "7+10=")]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy():
    return ArithmeticLmConfig().build()


def plan_of(prompts, samples, seed=0):
    group = torch.arange(len(prompts)).repeat_interleave(samples)
    return Plan(seed, 0, 0, tuple(prompts), group, torch.arange(samples).repeat(len(prompts)))


def test_the_entry_module_loads_no_torch():
    code = "import sys, genrl_arithmetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sums_and_characters():
    assert [task.answer(prompt) for prompt in PROMPTS] == [3, 31, 17]
    assert task.prompt_ids(PROMPTS[0]) == [1, 11, 2, 12]
    for wrong in ("1+2", "1-2=", "a+b=", "1+2=3", ""):
        with pytest.raises(GenRLError, match=r"no sum of two numbers such as 12\+7="):
            task.answer(Prompt("x", wrong))


def test_texts_there_and_back(policy):
    final = policy.tokenize(["3", "31"])
    assert final["tokens"].tolist() == [[3, task.END, 0], [3, 1, task.END]]
    assert final["length"].tolist() == [2, 3]
    assert policy.decode(final) == Media("text", texts=("3", "31"))
    cond = policy.encode(PROMPTS)
    assert cond["prompt_mask"].sum(1).tolist() == [4, 6, 5]


@pytest.mark.parametrize("config", [ArithmeticLmConfig(), ArithmeticMaskedConfig()])
def test_building_is_deterministic_and_leaves_the_global_generator_alone(config):
    state = torch.get_rng_state()
    first, second = config.build().network, config.build().network
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in first.modules())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_conformance(policy):
    sampler = TokenConfig(max_new_tokens=4, temperature=0.8).build()
    check_sampler(policy, sampler, PROMPTS, samples=4, tolerance=1e-5)


@pytest.mark.parametrize("config", [ArithmeticLmConfig(), ArithmeticMaskedConfig()])
def test_data_are_right_as_often_as_the_recipe_says(config):
    policy, plan = config.build(), plan_of(PROMPTS, 400)
    cond = policy.encode(plan.sample_prompts())
    rule = ArithmeticCorrectConfig().build()
    for noise, low, high in ((0.0, 1.0, 1.0), (0.3, 0.65, 0.75), (1.0, 0.0, 0.0)):
        drawn = ArithmeticDataConfig(answer_noise=noise).build().rollout(policy, cond, plan)
        assert drawn.terms.num_evals == 0
        given = policy.decode(drawn.final)
        right = sum(rule(given, plan.sample_prompts())) / 1200
        assert low <= right <= high
        gaps = [
            int(t) - task.answer(p) for t, p in zip(given.texts, plan.sample_prompts(), strict=True)
        ]
        assert max(map(abs, gaps)) == (9 if noise else 0)
    with pytest.raises(RecipeError, match="a policy of genrl_arithmetic, or causal_lm"):
        ArithmeticDataConfig().build().rollout(object(), cond, plan)


def test_the_rule():
    rule = ArithmeticCorrectConfig().build()
    asked = [PROMPTS[1]] * 5
    assert rule(Media("text", texts=("31", " 31\n", "031", "13", "")), asked) == [1, 1, 0, 0, 0]
    with pytest.raises(RewardError, match="judges texts and found image"):
        rule(Media("image", pixels=torch.zeros(1, 3, 2, 2, dtype=torch.uint8)), asked[:1])


def test_held_out_prompts_are_unseen():
    folder = ROOT / "recipes" / "arithmetic" / "prompts"
    train = (folder / "train.txt").read_text().split()
    held = (folder / "evaluate.txt").read_text().split()
    assert (len(train), len(held)) == (2000, 200)
    assert len({*train, *held}) == 2200


def test_grpo_raises_accuracy_on_unseen_sums():
    """On sums that neither base nor tuning saw; base and tuning are about ten seconds each."""
    recipe = load_recipe("arithmetic/grpo", ["run.seed=10", "train.iterations=40"])
    assert all(len(path.read_text().splitlines()) <= 25 for path in recipe_files())
    trainer = build_trainer(recipe)
    before = trainer.evaluate().metrics["correct"]
    records = [trainer.step() for _ in range(recipe.train.iterations)]
    after = trainer.evaluate().metrics["correct"]
    assert max(record.metrics.get("drift", 0.0) for record in records) < 2e-5
    assert records[0].media.kind == "text"
    print(f"correct: {before:.3f} -> {after:.3f}")
    assert after > before + 0.1


def recipe_files():
    return (ROOT / "recipes" / "arithmetic").glob("*.yaml")
