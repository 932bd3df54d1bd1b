"""Impossible combinations are refused on configs alone, with the reason and the way out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from genrl_core.errors import RecipeError, RewardError
from genrl_core.interfaces.media import Prompt
from genrl_core.recipe.check import check_recipe, find_problems
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.recipe.views import resolve_views
from genrl_core.registry import Registry

POCKET = Path(__file__).parent / "pocket_plugin.py"

BASE = """\
policy: {use: coin}
sampler: {use: toss}
reward:
  shine: {}
objective:
  clip: {epsilon: 0.2}
prompts: {file: train.txt}
train: {iterations: 3, num_prompts: 2, learning_rate: 1e-3}
"""

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    (tmp_path / "train.txt").write_text("heads\n")
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    registry = Registry()
    registry.add_file(POCKET)
    return lambda *overrides: load_recipe("base.yaml", overrides, registry)


def test_what_fits_is_let_through(load: Load) -> None:
    recipe = load("objective.near={}", "filter.min_std=0")
    check_recipe(recipe)
    assert find_problems(recipe) == []


def test_the_design_s_example_in_full(load: Load) -> None:
    (problem,) = find_problems(load("sampler.use=drop"))
    assert str(problem) == (
        "base.yaml:6: objective.clip: clip needs step_logp, which drop does not provide: "
        "a deterministic sampler has no step density. Choose toss, or view: elbo"
    )


REFUSED: dict[str, tuple[list[str], str]] = {
    "noise": (
        ["sampler.noise=0"],
        ("which toss does not provide: a toss without noise has no step density. "
        "Choose toss with its default settings, or view: elbo"),
    ),
    "no other view": (
        ["sampler.use=drop", "objective.clip.use=plain"],
        ("clip needs step_logp, which drop does not provide: a deterministic sampler has no step "
        "density. Choose toss"),
    ),
    "paradigm": (
        ["sampler.use=ripple"],
        ("base.yaml:2: sampler: ripple draws from wave policies, but coin is coin. "
        "Choose drop or toss"),
    ),
    "bound": (
        ["policy.use=token", "objective.fit={}"],
        ("fit needs elbo, which token does not provide: it would mean that a bound on the "
        "log-likelihood of a finished sample can be evaluated. Choose coin"),
    ),
    "view": (
        ["policy.use=token", "objective.clip.view=elbo"],
        ("clip needs elbo, which token does not provide: it would mean that a bound on the "
        "log-likelihood of a finished sample can be evaluated. Choose coin, or view: steps"),
    ),
    "neighbour": (
        ["sampler.use=drop", "objective.clip={use: plain}", "objective.near={}"],
        "near needs step_logp, which drop does not provide",
    ),
    "data": (
        ["sampler.use=mint"],
        ("clip reads the steps of a rollout, but mint returns data and takes no steps. "
        "Choose a sampler that draws, or view: elbo"),
    ),
    "medium": (
        ["reward.essay={}"],
        "reward.essay: essay judges text, but coin makes image. Choose shine",
    ),
    "metric's medium": (
        ["evaluate.metrics.essay={}", "prompts.evaluate=train.txt"],
        "evaluate.metrics.essay: essay judges text, but coin makes image",
    ),
    "judge": (
        ["reward.jury={}"],
        "reward.jury: jury is for evaluation only; name it under evaluate.metrics",
    ),
    "no reward": (["reward=null"], "reward: there is no reward, but objective clip learns from"),
    "no objective": (["objective=null"], "there is no objective; add one of: clip, fit, near, oth"),
    "no view": (
        ["objective.clip=null", "objective.near={}"],
        "`near` take the view of another objective, and there is none; add one",
    ),
    "no policy": (["policy=null"], "policy: there is no policy; add `policy: {use: NAME}`"),
    "no sampler": (["sampler=null"], "sampler: there is no sampler; add `sampler: {use: NAME}`"),
    "G = 1, mean": (
        ["train.num_generations=1", "advantage.scale=none"],
        ("train.num_generations: advantage.baseline: group_mean compares the samples of a prompt, "
        "and num_generations is 1. Take at least 2, or advantage.baseline: batch_mean"),
    ),
    "G = 1, others": (
        ["train.num_generations=1", "advantage={baseline: leave_one_out, scale: none}"],
        "advantage.baseline: leave_one_out compares the samples of a prompt",
    ),
    "G = 1, deviation": (
        ["train.num_generations=1", "advantage.baseline=none"],
        "or advantage.scale: batch_std",
    ),
    "G = 1, filter": (
        ["train.num_generations=1", "advantage={baseline: none, scale: none}",
         "filter.min_std=0"],
        "the spread of a group of one sample is always 0, and the filter rejects it",
    ),
    "nothing to resample": (
        ["filter.then=resample"],
        "nothing is rejected without filter.min_std or filter.std_percentile",
    ),
    "minibatches": (
        ["train.num_minibatches=3"],
        "groups stay whole, so 2 prompts cannot be split into 3 minibatches; take at most 2",
    ),
    "no prompts": (["prompts=null"], "prompts.file: is missing; name a file of prompts"),
    "no such prompts": (["prompts.file=none.txt"], "prompts.file: there is no file "),
    "no held-out prompts": (["evaluate.metrics.jury={}"], "prompts.evaluate: is missing"),
    "primary_metric": (
        ["evaluate={metrics: {jury: {}}, primary_metric: best}", "prompts.evaluate=train.txt"],
        "no such metric `best`; they are jury, reward",
    ),
    "weights": (
        ["policy.weights=recipe:nowhere"],
        "policy.weights: recipe:nowhere: unknown recipe `nowhere`",
    ),
    "weights of nobody": (
        ["policy.weights=runs/bsae"],
        ("policy.weights: runs/bsae is no folder of a run (with checkpoints/) or of a checkpoint "
        "(with MANIFEST.json), and coin loads no others. Give one of these, or recipe:NAME"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_with_the_way_out(load: Load, case: str) -> None:
    overrides, message = REFUSED[case]
    recipe = load(*overrides)
    found = [str(problem) for problem in find_problems(recipe)]
    assert any(message in line for line in found), found
    with pytest.raises(RecipeError):
        check_recipe(recipe)
    if case not in ("neighbour", "no view", "no reward", "elbo"):
        assert len(found) == 1, found


def test_weights_that_nobody_loads_are_refused_with_their_line(load: Load, tmp_path: Path) -> None:
    policy = "policy:\n  use: {}\n  weights: saved\n"
    (tmp_path / "base.yaml").write_text(
        BASE.replace("policy: {use: coin}\n", policy.format("coin"))
    )
    (problem,) = find_problems(recipe := load())
    assert str(problem).startswith("base.yaml:3: policy.weights: saved is no folder of a run")
    assert find_problems(recipe, policy_injected=True) == []
    (tmp_path / "saved" / "checkpoints").mkdir(parents=True)
    assert find_problems(load()) == []


def test_a_policy_may_load_weights_of_its_own(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load("policy.weights=somebody/model")
    assert len(find_problems(recipe)) == 1
    monkeypatch.setattr(type(recipe.policy), "loads_weights", True)
    assert find_problems(recipe) == []


NO_BEGINNING = {
    "Show-o without weights": ("digits/mask_grpo", "showo", "null", "names no published Show-o"),
    "another world": ("shapes/mask_grpo", "showo", "null", "names no published Show-o"),
    "aMUSEd without weights": ("digits/mask_grpo", "amused", "null", "is missing: give amused"),
    "no language model": ("arithmetic/grpo", "causal_lm", "null", "is missing: give causal_lm"),
    "the digits' base": (
        "digits/mask_grpo", "showo", "recipe:digits/masked_base", "names no published Show-o",
    ),
    "another small network": (
        "digits/mask_grpo", "shapes_masked", "recipe:digits/masked_base",
        "holds the weights of digits_masked, and this policy is shapes_masked, another network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_BEGINNING)
def test_weights_that_the_policy_cannot_begin_from_are_refused(case: str) -> None:
    """What ``run`` would say when it builds the policy, by the configs alone."""
    name, policy, weights, message = NO_BEGINNING[case]
    recipe = load_recipe(name, [f"policy.use={policy}", f"policy.weights={weights}"])
    found = [
        problem.message for problem in find_problems(recipe) if problem.path == "policy.weights"
    ]
    assert message in "; ".join(found)
    assert find_problems(recipe, policy_injected=True) == []


def test_the_weights_of_another_policy_s_run_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    of_digits = load_recipe("digits/mask_grpo")
    (run / "recipe.resolved.yaml").write_text(of_digits.to_yaml())
    assert find_problems(load_recipe("digits/mask_grpo", [f"policy.weights={run}"])) == []
    others = load_recipe("shapes/mask_grpo", [f"policy.weights={run}"])
    found = {problem.path: problem.message for problem in find_problems(others)}
    assert "holds the weights of digits_masked" in found.get("policy.weights", "nothing")


def test_all_reasons_come_at_once(load: Load) -> None:
    recipe = load("sampler.use=drop", "reward.jury={}", "train.num_minibatches=9", "prompts=null")
    with pytest.raises(RecipeError) as error:
        check_recipe(recipe)
    assert len(str(error.value).splitlines()) == 4


def test_what_is_injected_is_not_judged(load: Load) -> None:
    bare = load("policy=null", "sampler=null", "reward=null")
    check_recipe(bare, policy_injected=True, sampler_injected=True, rewards_injected=True)
    assert len(find_problems(bare)) == 3
    assert len(find_problems(bare, policy_injected=True, sampler_injected=True)) == 1
    drop = load("sampler.use=drop")
    check_recipe(drop, sampler_injected=True)
    assert find_problems(drop, policy_injected=True), "the sampler's own lack is still known"


def test_a_supervised_recipe_needs_no_reward(load: Load) -> None:
    check_recipe(load("sampler.use=mint", "objective={fit: {}, clip: null}", "reward=null"))


def test_data_have_no_reward_to_learn_from(load: Load) -> None:
    """Without one every advantage is 0, and the run would train nothing and say nothing."""
    recipe = load("sampler.use=mint", "objective={fit: {}, clip: {view: elbo}}", "reward=null")
    with pytest.raises(RecipeError, match="no reward, but objective clip learns from rewards"):
        check_recipe(recipe)


def test_views_are_resolved_from_the_neighbours(load: Load) -> None:
    assert resolve_views(load("objective.near={}")) == {"clip": "steps", "near": "steps"}
    bound = load("objective.clip.view=elbo", "objective.near={}")
    assert resolve_views(bound) == {"clip": "elbo", "near": "elbo"}
    mixed = load("objective={fit: {}, near: {}, clip: null, plain: {}}")
    assert resolve_views(mixed) == {"fit": "elbo", "near": "steps", "plain": "steps"}
    with pytest.raises(RecipeError, match="take the view of another objective"):
        resolve_views(load("objective={clip: null, near: {}}"))


def test_prompts_that_a_reward_cannot_judge_are_counted_and_the_first_is_shown(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks_for_heads(_: object, prompt: Prompt) -> None:
        if "heads" not in prompt.text:
            raise RewardError(f"{prompt.text!r} names no heads; name them")

    (tmp_path / "held.txt").write_text("heads\ntails\nedge\n")
    recipe = load("prompts.evaluate=held.txt", "evaluate.metrics={jury: {}}")
    assert find_problems(recipe) == []
    monkeypatch.setattr(type(recipe.reward["shine"]), "check_prompt", asks_for_heads)
    problems = find_problems(recipe)
    assert [problem.path for problem in problems] == ["prompts.evaluate"]
    told = "held.txt: 2 of 3 prompts do not fit; 'tails' names no heads; name them"
    assert problems[0].message.endswith(told)
    assert find_problems(recipe, rewards_injected=True) == []
    monkeypatch.setattr(type(recipe.metrics["jury"]), "check_prompt", asks_for_heads)
    assert find_problems(recipe) == problems, "said once, whoever cannot judge it"
    assert find_problems(recipe, rewards_injected=True) == problems
    (tmp_path / "train.txt").write_text("tails\n")
    again = recipe.with_overrides()
    assert [p.path for p in find_problems(again)] == ["prompts.file", "prompts.evaluate"]
    (tmp_path / "train.txt").write_bytes(b"\xff\n")
    unread, unfit = find_problems(recipe.with_overrides())
    assert unread.message.endswith("train.txt:1: not UTF-8 text")
    assert unfit.path == "prompts.evaluate"
