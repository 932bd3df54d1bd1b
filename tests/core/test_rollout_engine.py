"""Doors of the core: samples from elsewhere, a view from elsewhere, and what a run left behind."""

import ast
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import genrl_core
from genrl_core import (
    Batch,
    Capability,
    CheckpointError,
    Media,
    Objective,
    ObjectiveConfig,
    Policy,
    Prepared,
    Prompt,
    Recipe,
    RecipeError,
    Reward,
    Sampler,
    Tensors,
    Trainer,
    Trajectory,
    View,
    build_trainer,
    hookimpl,
    load_recipe,
)
from genrl_core.loop.rollout import Rollout, RolloutEngine
from genrl_core.registry import Registry
from genrl_core.run import checkpoint, saving
from genrl_core.run.runner import run
from genrl_core.runs import generate, open_run, score
from genrl_core.testing import ToyReward
from genrl_core.testing import enumerable as toys

Make = Callable[..., Recipe]
TOYS = ["toy_sequence", "toy_canvas", "toy_gaussian"]


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds")}


def weights_of(trainer: Trainer, name: str = "current") -> Tensors:
    return {key: t.clone() for key, t in trainer.weight_sets.state_dict(name).items()}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[key]) for key, t in one.items())


# Samples from elsewhere


class Recording:
    """Passes on what another engine collects, and keeps it as it would be in a file."""

    def __init__(self, inner: RolloutEngine):
        self.inner, self.files = inner, list[bytes]()

    def collect(self, iteration: int) -> Rollout:
        rollout, file = self.inner.collect(iteration), io.BytesIO()
        torch.save(rollout, file)
        self.files.append(file.getvalue())
        return rollout

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class Replayed:
    """A caller's own engine: it draws nothing and asks no reward."""

    def __init__(self, files: Sequence[bytes]):
        self.files, self.asked = files, list[int]()

    def collect(self, iteration: int) -> Rollout:
        self.asked.append(iteration)
        found: Rollout = torch.load(io.BytesIO(self.files[iteration]), weights_only=False)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = list(state["asked"])


class Refusing(Reward):
    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        raise AssertionError("the rewards stand in the recorded rollouts")


def scoring(recipe: Recipe) -> Sampler:
    """The recipe's sampler, which may score and never draw."""
    assert recipe.sampler is not None
    sampler = recipe.sampler.build()

    def refuse(*_: object) -> Trajectory:
        raise AssertionError("the samples stand in the recorded rollouts")

    sampler.rollout = refuse  # type: ignore[method-assign]
    return sampler


MIXED: dict[str, dict[str, dict[str, Any]]] = {
    "steps": {"grpo": {"epsilon": 0.2}, "kl": {"weight": 0.1, "estimator": "analytic"}},
    "elbo": {"grpo": {"epsilon": 0.2, "view": "elbo"}, "kl": {"weight": 0.1, "estimator": "k2"}},
    "denoising": {"nft": {}},
}
PAIRS = [(toy, view) for toy in TOYS for view in MIXED if (toy, view) != (TOYS[0], "denoising")]


@pytest.mark.parametrize(("toy", "view"), PAIRS)
def test_recorded_rollouts_train_as_those_that_were_drawn(
    toy_recipe: Make, toy: str, view: str
) -> None:
    """Bit by bit, over three iterations: weights, averages and metrics."""
    recipe = toy_recipe(
        toy, "train.num_updates=2", "train.num_minibatches=3", "train.micro_batch_size=5",
        "filter={min_std: 0.2, then: resample}", "weights.ema={decay: 0.5}", "train.draws=2",
        "train.steps={choose: random, count: 1}", objective=MIXED[view],
    )  # fmt: skip
    drawing = build_trainer(recipe)
    recording = Recording(drawing.rollouts)
    drawing.rollouts = recording
    wanted = [
        (timeless(drawing.step().metrics), weights_of(drawing), weights_of(drawing, "ema"))
        for _ in range(3)
    ]
    assert not equal(wanted[0][1], wanted[1][1]) and not equal(wanted[1][1], wanted[2][1])
    engine = Replayed(recording.files)
    trainer = build_trainer(
        recipe, rollouts=engine, sampler=scoring(recipe), rewards={"toy_reward": Refusing()}
    )
    assert trainer.rollouts is engine
    for metrics, current, average in wanted:
        record = trainer.step()
        assert record.problem is None and timeless(record.metrics) == metrics
        assert equal(weights_of(trainer), current)
        assert equal(weights_of(trainer, "ema"), average)
    assert engine.asked == [0, 1, 2]


def test_a_run_of_ones_own_engine_is_resumed_with_its_own_state(
    toy_recipe: Make, tmp_path: Path
) -> None:
    """What stands in the checkpoint is the engine's affair."""
    recipe = toy_recipe("toy_canvas")
    drawing = build_trainer(recipe)
    drawing.rollouts = recording = Recording(drawing.rollouts)
    for _ in range(3):
        drawing.step()
    first = build_trainer(recipe, rollouts=Replayed(recording.files))
    for _ in range(2):
        first.step()
    saving.save(first, recipe, tmp_path)
    second = build_trainer(recipe, rollouts=(engine := Replayed(recording.files)))
    saving.restore(second, recipe, next(checkpoint.snapshots(tmp_path, [])))
    assert engine.asked == [0, 1]
    second.step()
    assert engine.asked == [0, 1, 2]
    assert equal(weights_of(second), weights_of(drawing))


# A view from elsewhere


@dataclass(frozen=True)
class WholeSample(View):
    """The log-density of a sample's whole trajectory: one number."""

    name = "whole_sample"
    capability = Capability.STEP_LOGP
    gives = frozenset({"old_log_probs"})

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    num_evals: int = 1

    @classmethod
    def prepare(
        cls, wanted: Any, rollout: Rollout, advantage: Tensor, update: int, context: Any
    ) -> Prepared:
        terms = rollout.terms
        old = (terms.log_probs * terms.mask).sum(0, keepdim=True)
        one = torch.ones_like(old)
        batch = Batch(
            view=cls.name, log_probs=old, old_log_probs=old, step=one.long() * 0,
            events=(terms.events * terms.mask).sum(0, keepdim=True), mask=one.bool(),
            denominator_mask=one.bool(), weight=one, scale=one, advantage=one * advantage,
            reward=rollout.reward.to(one), group=rollout.group, valid=rollout.valid,
        )  # fmt: skip
        view = cls(context.policy, context.sampler, rollout.trajectory)
        return Prepared(view, batch, {"log_probs": old})

    def evaluate(self, k: Tensor, b: Tensor) -> Tensors:
        steps = self.trajectory.terms.num_evals
        every = torch.arange(steps).repeat(len(b)), b.repeat_interleave(steps)
        densities, action = self.sampler.densities(self.policy, self.trajectory, *every)
        return {"log_probs": densities.log_prob(action).reshape(len(b), -1).sum(1, keepdim=True)}

    def fill_values(self, batch: Batch) -> Tensors:
        return {"log_probs": torch.zeros_like(batch.log_probs)}

    def with_current(self, batch: Batch, values: Tensors) -> Batch:
        return replace(batch, log_probs=values["log_probs"])


class WholeReinforce(Objective):
    separable = True

    def loss(self, batch: Batch) -> tuple[Tensor, Tensors]:
        return batch.reduce(-batch.advantage * batch.log_probs), {"whole": batch.log_probs}


class WholeReinforceConfig(ObjectiveConfig):
    """REINFORCE on whole trajectories."""

    def view_wanted(self) -> type[View]:
        return WholeSample

    def build(self) -> Objective:
        return WholeReinforce()


@pytest.fixture(scope="module")
def own_registry() -> Registry:
    """The toys, and a plugin with an objective whose view is its own."""
    plugin = ModuleType("whole_sample_plugin")
    plugin.register_objectives = hookimpl(  # type: ignore[attr-defined]
        lambda register: register("whole_reinforce", WholeReinforceConfig),
        specname="register_objectives",
    )
    return Registry.discover(modules=[toys, plugin])


@pytest.mark.parametrize("toy", TOYS)
def test_a_fifth_view_trains(toy_recipe: Make, own_registry: Registry, toy: str) -> None:
    """As REINFORCE on the sum over steps does, through a recipe; neighbours keep their own view."""
    common = ["train.num_updates=2", "train.micro_batch_size=5", "train.iterations=2"]
    found = []
    for objective in (
        {"whole_reinforce": {}}, {"reinforce": {"reduce": "sum"}},
        {"whole_reinforce": {}, "grpo": {"epsilon": 0.2, "weight": 0.0}},
    ):  # fmt: skip
        plain = toy_recipe(toy, *common)
        tree = plain.resolved | {"objective": objective, "advantage": None}
        recipe = load_recipe(tree, registry=own_registry)
        trainer = build_trainer(recipe)
        before = weights_of(trainer)["table"]
        records = [trainer.step() for _ in range(2)]
        assert all(record.problem is None for record in records)
        assert max(record.metrics["drift"] for record in records) < 1e-12
        assert ("whole" in records[0].metrics) == ("whole_reinforce" in objective)
        names = [group.view.name for group in trainer.parts.objectives]
        assert names == {"whole_reinforce": ["whole_sample"], "reinforce": ["steps"]}.get(
            "+".join(objective), ["whole_sample", "steps"]
        )
        found.append(weights_of(trainer)["table"])
        assert (found[-1] - before).abs().max() > 1e-2
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


# What a run left behind


@pytest.fixture
def finished(toy_recipe: Make, tmp_path: Path) -> tuple[Recipe, Path]:
    recipe = toy_recipe(
        "toy_canvas", "weights.ema={decay: 0.5}", "save={every: 1, keep: 3}", "run.name=small"
    )
    assert run(recipe, tmp_path / "runs", quiet=True) == 0
    return recipe, tmp_path / "runs" / "small"


def test_a_finished_run_tells_what_it_recorded(
    finished: tuple[Recipe, Path], toy_registry: Registry
) -> None:
    recipe, folder = finished
    left = open_run(folder, registry=toy_registry)
    assert left.folder == folder and left.recipe.resolved == recipe.resolved
    trainer = build_trainer(recipe)
    records = [timeless(trainer.step().metrics) for _ in range(3)]
    rows = left.metrics()
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    for row, known in zip(rows, records, strict=True):
        assert {name: row[name] for name in known} == known
    events = left.events()
    assert [e["iteration"] for e in events if e["kind"] == "save"] == [1, 2, 3]
    assert all({"time", "iteration", "kind", "message"} <= event.keys() for event in events)
    samples = left.samples()
    assert list(samples) == [3] and len(samples[3]) == 5 * 4
    shown = trainer.evaluate()
    assert [row["text"] for row in samples[3]] == list(shown.media.texts)
    assert [row["prompt"] for row in samples[3]] == [prompt.text for prompt in shown.prompts]
    assert [row["prompt_id"] for row in samples[3]] == [prompt.id for prompt in shown.prompts]


def test_a_finished_run_gives_its_policy_by_the_name_of_its_weights(
    finished: tuple[Recipe, Path], toy_registry: Registry
) -> None:
    """As trained, averaged, or after an iteration; silent, what evaluations use."""
    recipe, folder = finished
    left = open_run(folder, registry=toy_registry)
    trainer = build_trainer(recipe)
    after = {}
    for iteration in (1, 2, 3):
        trainer.step()
        after[iteration] = weights_of(trainer)["table"], weights_of(trainer, "ema")["table"]

    def table(weights: Any) -> Tensor:
        found: Tensor = left.policy(weights).network.table.detach()
        return found

    assert torch.equal(table("last"), after[3][0])
    assert torch.equal(table("ema"), after[3][1])
    assert torch.equal(table(None), after[3][1])
    assert torch.equal(table(2), after[2][1])
    assert not torch.equal(table("last"), table("ema"))
    for unknown, why in (
        ("lagging", "holds no weights 'lagging'"),
        (7, "small has no valid checkpoint after iteration 7"),
    ):
        with pytest.raises(CheckpointError, match=why):
            table(unknown)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RecipeError, match=r"is no run folder: it has no recipe\.resolved"):
            open_run(folder)


class Partly(ToyReward):
    """Nothing for the second half."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float | None]:  # type: ignore[override]
        half = len(prompts) // 2
        return [*super().__call__(media, prompts)[:half], *[None] * (len(prompts) - half)]


def test_samples_and_scores_of_a_finished_run(
    finished: tuple[Recipe, Path], toy_registry: Registry
) -> None:
    left = open_run(finished[1], registry=toy_registry)
    policy, prompts = left.policy("last"), [Prompt("x", "one"), Prompt("y", "another")]
    media = generate(policy, left.sampler(), prompts, num=8, seed=3)
    assert len(media) == 16 and all(len(text.split()) == 3 for text in media.texts)
    again = [
        generate(policy, left.sampler(), prompts, num=8, seed=seed, rollout_batch_size=size)
        for seed, size in ((3, 5), (4, 99))
    ]
    assert again[0].texts == media.texts and again[1].texts != media.texts
    assert len(generate(policy, left.sampler(), ["only a text"]).texts) == 1
    asked = [prompt for prompt in prompts for _ in range(8)]
    found = score({"toy": ToyReward(), "partly": Partly()}, media, asked)
    assert found["toy"] == ToyReward()(media, asked)
    assert found["partly"] == [*found["toy"][:8], *[None] * 8]


# What the loop may know

ROOT = Path(genrl_core.__file__).parent
FILES = sorted(path for room in ("loop", "interfaces") for path in (ROOT / room).rglob("*.py"))
OTHER_ROOMS = {"recipe", "run", "runs", "cli", "registry", "testing"}
KNOWN = {
    path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()
} - OTHER_ROOMS


def imports(source: str) -> Iterator[str]:
    """The full names of what a module imports, wherever it does, for types alone or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports would pass unseen"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strangers(source: str) -> list[str]:
    """Imports from other rooms, and public names of the package, which may come from any."""
    found = [name.partition(".")[::2] for name in imports(source)]
    inside = [rest for package, rest in found if package == "genrl_core"]
    return [rest for rest in inside if rest.partition(".")[0] not in KNOWN]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_loop_imports_no_recipe_no_run_and_no_command_line(path: Path) -> None:
    assert strangers(path.read_text()) == []


@pytest.mark.parametrize("line", [
    "from genrl_core.recipe.recipe import Recipe", "import genrl_core.run.folder",
    "from genrl_core import load_recipe", "from genrl_core.run import checkpoint",
    "import genrl_core", "from genrl_core.cli.app import main",
])  # fmt: skip
def test_the_test_of_imports_can_fail(line: str) -> None:
    for source in (line, f"def f():\n    {line}\n", f"if TYPE_CHECKING:\n    {line}\n"):
        assert len(strangers(source)) == 1
    assert strangers("import torch\nfrom genrl_core.loop.plan import plan_of\n") == []
