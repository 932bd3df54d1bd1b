"""Reading recipes: scalar rules, inheritance, presets, overrides, and what mistakes say."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from genrl_core import __version__
from genrl_core.errors import RecipeError
from genrl_core.recipe import reader
from genrl_core.recipe.reader import read_yaml, to_yaml
from genrl_core.recipe.recipe import Recipe, load_recipe
from genrl_core.registry import Registry

POCKET = Path(__file__).parent / "pocket_plugin.py"

BASE = """\
policy: {use: coin}
sampler: {use: toss, num_inference_steps: 6}
reward:
  shine: {weight: 2.0}
objective:
  clip: {epsilon: 0.2}
prompts: {file: prompts/train.txt}
train:
  iterations: 3
  num_prompts: 2
  learning_rate: 1e-3
"""


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add_file(POCKET)
    return registry


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train.txt").write_text("heads\ntails\n")
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, registry: Registry, *overrides: str, name: str = "mine.yaml") -> Recipe:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return load_recipe(name, overrides, registry)


def child(text: str, registry: Registry, *overrides: str) -> Recipe:
    return load("extends: base.yaml\n" + text, registry, *overrides)


def failure(text: str, registry: Registry, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(text, registry, *overrides)
    return str(error.value).splitlines()


SCALARS: dict[str, object] = {
    "1e-4": 1e-4, "1E5": 1e5, "-2.5e+3": -2500.0, ".5": 0.5, "1.": 1.0, "3": 3, "-3": -3, "+0": 0,
    "017": "017", "12:30": "12:30", "0x1f": "0x1f", "1_000": "1_000", "2024-01-01": "2024-01-01",
    "yes": "yes", "no": "no", "on": "on", "off": "off", "y": "y", "True": "True", "NULL": "NULL",
    "true": True, "false": False, "null": None, "~": None, "''": "", "'1'": "1", "=": "=",
    "1.2.3": "1.2.3", "e5": "e5", "-": None, "99999999999999999999": "99999999999999999999",
    "recipe:digits/base": "recipe:digits/base",
}  # fmt: skip


@pytest.mark.parametrize("text", [key for key in SCALARS if key != "-"])
def test_scalar_rules(text: str) -> None:
    problems: list[Any] = []
    value, _ = read_yaml(f"a: {text}", "x", Path(), problems)
    assert not problems
    assert value == {"a": SCALARS[text]}
    assert type(value["a"]) is type(SCALARS[text])


def test_both_parsers_read_every_recipe_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values at the same places, whether PyYAML has libyaml or not."""
    texts = [
        path.read_text() for files in Registry.discover().recipes().values() for path, _ in files
    ]
    assert len(texts) > 90
    with_libyaml = [read_yaml(text, "x", Path(), []) for text in texts]
    monkeypatch.setattr(reader, "_Loader", yaml.BaseLoader)
    assert [read_yaml(text, "x", Path(), []) for text in texts] == with_libyaml


@pytest.mark.parametrize("loader", ["BaseLoader", "CBaseLoader"])
@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: !x 2", 2, "tags such as `!x`"),
        ("a: !!int '3'", 1, "tags such as `!!int`"),
        ("a: 1\nb:\n  - {a: 1, a: 2}", 3, "duplicate key; first given in line 3"),
        ("a:\n  1: 2", 2, "keys are text, not 1"),
        ("a: 1\nb: }", 2, "not valid YAML"),
        ("a:\n\tb: 1", 2, "not valid YAML: found character"),
        ("a: 1\n---\nb: 1", 2, "not valid YAML"),
        ("\na: " + "[" * 41 + "]" * 41, 2, "not valid YAML: too many nested levels"),
        ("\na: " + "[" * 100_000, 2, "nest"),
        ("a: &a 1\nb: [" + "*a, " * 101 + "]", 2, "not valid YAML: too many aliases"),
        ("a: &a [*a]", 1, "aliases repeat too much"),
    ],
)  # fmt: skip
def test_both_parsers_refuse_the_same(
    monkeypatch: pytest.MonkeyPatch, loader: str, text: str, line: int, message: str
) -> None:
    monkeypatch.setattr(reader, "_Loader", getattr(yaml, loader))
    problems: list[Any] = []
    read_yaml(text, "x", Path(), problems)
    (problem,) = problems
    assert problem.place == f"x:{line}" and message in problem.message


@pytest.mark.parametrize(
    "value",
    ["1e-4", "017", "yes", "12:30", "null", "~", "", "true", "a: b", "# x", "0x1f", "1_000", "é\n",
     ".5", "1.", "=", "<<", "2024-01-01", 1e-4, 1e22, -0.5, 3, True, None, [1, "1"], [], {}],
)  # fmt: skip
def test_what_is_written_reads_back_here_and_in_plain_yaml(value: object) -> None:
    text = to_yaml({"a": value})
    assert read_yaml(text, "x", Path(), [])[0] == {"a": value}
    assert yaml.safe_load(text) == {"a": value}


def test_a_file_gives_configs_defaults_and_absolute_prompts(
    registry: Registry, folder: Path
) -> None:
    recipe = load(BASE, registry)
    assert recipe.name == "mine"
    assert recipe.given == BASE
    assert recipe.train.learning_rate == 1e-3
    assert recipe.train.num_generations == 8
    assert recipe.reward["shine"].weight == 2.0
    assert recipe.prompts.file == str(folder / "prompts/train.txt")
    assert registry.name_of(recipe.objective["clip"]) == "clip"
    assert recipe.place("train", "iterations") == "mine.yaml:9"


def test_policy_and_sampler_may_be_absent(registry: Registry) -> None:
    recipe = load_recipe({"train": {"iterations": 1, "num_prompts": 1, "learning_rate": 1.0}})
    assert (recipe.policy, recipe.sampler, recipe.name, recipe.given) == (None, None, "unnamed", "")
    with pytest.raises(RecipeError, match="no sampler"):
        recipe.sampler_for()


def test_a_mapping_reads_like_its_yaml(registry: Registry) -> None:
    tree = read_yaml(BASE, "x", Path(), [])[0]
    assert load_recipe(tree, registry=registry).digest() == load(BASE, registry).digest()
    tree["train"]["adam_betas"] = (0.5, 0.6)
    assert load_recipe(tree, registry=registry).train.adam_betas == [0.5, 0.6]
    for wrong in ({1: 2}, {"train": {"iterations": object()}}):
        with pytest.raises(RecipeError, match="mapping"):
            load_recipe(wrong, registry=registry)


def test_the_resolved_form_reproduces_the_recipe(registry: Registry, tmp_path: Path) -> None:
    text = (
        "objective: {near: {weight: 0.5}}\nevaluate: {sampler: {limit: null}, metrics: {jury: {}}}"
    )
    recipe = child(text, registry, "train.max_grad_norm=null", "run.name=x")
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "recipe.resolved.yaml").write_text(recipe.to_yaml())
    again = load_recipe(str(run), registry=registry)
    assert again.resolved == recipe.resolved
    assert again.digest() == recipe.digest()
    assert again.name == "x"
    assert recipe.train.max_grad_norm is None
    assert recipe.resolved["requires"] == [f"genrl-core>={__version__}"]
    assert recipe.resolved["objective"]["clip"]["use"] == "clip"
    assert yaml.safe_load(recipe.to_yaml()) == recipe.resolved


def test_the_digest_ignores_the_name_and_sees_what_prompt_files_hold(registry: Registry) -> None:
    digest = load(BASE, registry).digest()
    assert child("", registry, "run.name=y", "save.every=5").digest() == digest
    assert child("", registry, "run.seed=1").digest() != digest
    Path("elsewhere.txt").write_text("heads\ntails\n")
    assert child("prompts: {file: elsewhere.txt}", registry).digest() == digest
    Path("elsewhere.txt").write_text("heads\n")
    assert child("prompts: {file: elsewhere.txt}", registry).digest() != digest


def test_the_digest_follows_the_recipe_that_gives_the_weights(registry: Registry) -> None:
    def digest() -> str:
        return child("policy: {weights: recipe:first.yaml}", registry).digest()

    Path("first.yaml").write_text("extends: base.yaml")
    before = digest()
    Path("first.yaml").write_text("extends: base.yaml\nrun: {seed: 7}")
    assert digest() != before
    Path("first.yaml").write_text("extends: mine.yaml")
    with pytest.raises(RecipeError, match=r"mine.yaml:2: policy.weights: leads back to itself"):
        digest()
    Path("first.yaml").unlink()
    with pytest.raises(RecipeError, match=r"mine.yaml:2: policy.weights: .*first.yaml does not ex"):
        digest()


# Inheritance


def test_sections_merge_and_the_child_wins(registry: Registry) -> None:
    recipe = child("train: {iterations: 9}\nsampler: {guidance_scale: 3}", registry)
    assert recipe.train.iterations == 9
    assert recipe.train.num_prompts == 2
    assert recipe.sampler is not None
    assert recipe.sampler.model_dump()["num_inference_steps"] == 6
    assert recipe.place("train", "iterations") == "mine.yaml:2"
    assert recipe.place("train", "num_prompts") == "base.yaml:10"


def test_a_new_use_starts_its_section_afresh(registry: Registry) -> None:
    assert "num_inference_steps" not in child("sampler: {use: drop}", registry).resolved["sampler"]
    same = child("sampler: {use: toss, noise: 0.5}", registry).resolved["sampler"]
    assert same["num_inference_steps"] == 6
    label = child("objective: {clip: {use: fit}}", registry).resolved["objective"]
    assert label == {"clip": {"use": "fit", "weight": 1.0}}
    unchanged = child("objective: {clip: {use: clip}}", registry).resolved["objective"]
    assert unchanged["clip"]["epsilon"] == 0.2


def test_null_removes(registry: Registry) -> None:
    assert not child("reward: {shine: null}", registry).reward
    assert child("objective: {clip: null, fit: {}}", registry).objective.keys() == {"fit"}
    assert child("reward: null", registry).resolved["reward"] == {}
    assert (
        child("sampler: {num_inference_steps: null}", registry).resolved["sampler"][
            "num_inference_steps"
        ]
        == 4
    )
    limit = child("sampler: {limit: null}", registry).resolved["sampler"]["limit"]
    assert limit is None, "a field that takes null is set to it"
    (line,) = failure("extends: base.yaml\nreward:\n  essay:\n", registry)
    assert line.startswith("mine.yaml:3: reward.essay: is empty; write `{}`")


def test_a_chain_of_parents_keeps_where_values_and_paths_come_from(registry: Registry) -> None:
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/prompts.txt").write_text("x\n")
    parent = "extends: ../../base.yaml\nprompts: {file: prompts.txt}\nrequires: [genrl-core>=0.0]\n"
    Path("deep/er/parent.yaml").write_text(parent)
    text = "extends: deep/er/parent.yaml\nrequires: [pyyaml>=5]\n"
    text += "prompts: {evaluate: prompts/train.txt}"
    recipe = load(text, registry)
    assert recipe.prompts.file == str(Path("deep/er/prompts.txt").resolve())
    assert recipe.prompts.evaluate == str(Path("prompts/train.txt").resolve())
    assert recipe.place("prompts", "file") == "deep/er/parent.yaml:2"
    assert {re.split("[>=,]", item)[0] for item in recipe.resolved["requires"]} == {
        "genrl-core", "pyyaml",
    }  # fmt: skip


def test_presets_hold_where_the_recipe_is_silent(registry: Registry) -> None:
    plain = child("objective: {clip: null, plain: {}}", registry)
    assert plain.advantage.scale == "none"
    assert plain.resolved["filter"]["min_std"] == 0.0
    assert plain.place("advantage", "scale") == "default of objective.plain"
    stated = child("objective: {plain: {}}\nadvantage: {scale: group_std}", registry)
    assert stated.advantage.scale == "group_std"
    both = "extends: base.yaml\nobjective: {plain: {}, other: {}}\n"
    (line,) = failure(both, registry)
    assert "advantage.scale: objectives disagree" in line
    assert "(objective.plain)" in line
    assert "(objective.other)" in line
    assert load(both, registry, "advantage.scale=group_std").advantage.scale == "group_std"
    assert plain.with_overrides("objective.plain=null", "objective.fit={}").advantage.scale == (
        "group_std"
    ), "a preset's default goes with its objective"


def test_evaluation_has_its_own_sampler_fields(registry: Registry) -> None:
    recipe = child("evaluate: {sampler: {guidance_scale: 3, limit: null}}", registry)
    evaluation = recipe.sampler_for(num_inference_steps=9).model_dump()
    assert (evaluation["guidance_scale"], evaluation["num_inference_steps"]) == (3.0, 9)
    assert evaluation["limit"] is None
    assert recipe.sampler is not None
    assert recipe.sampler.model_dump()["limit"] == 3.0
    with pytest.raises(RecipeError, match=r"evaluate\.sampler\.steps: .*`num_inference_steps`"):
        recipe.sampler_for(steps=3)
    with pytest.raises(RecipeError, match=r"evaluate\.sampler\.noise: should be at least 0"):
        recipe.sampler_for(noise=-1.0)


# Overrides


def test_overrides_follow_the_scalar_rules_and_win(registry: Registry) -> None:
    recipe = child(
        "", registry, "train.learning_rate=1e-4", "train.adam_betas=[0.8, 0.9]",
        "train.steps={choose: random, count: 2}", "objective.near.weight=0.1",
        "policy.label=017", "objective.near.weight=0.3",
    )  # fmt: skip
    assert recipe.train.learning_rate == 1e-4
    assert recipe.train.adam_betas == [0.8, 0.9]
    assert recipe.train.steps.count == 2
    assert recipe.objective["near"].weight == 0.3
    assert recipe.resolved["policy"]["label"] == "017"
    assert recipe.with_overrides("sampler.use=drop").resolved["sampler"] == {"use": "drop"}
    assert recipe.with_overrides("objective.near=null").objective.keys() == {"clip"}


def test_a_mapping_given_for_labels_replaces_them_and_says_what_went(registry: Registry) -> None:
    """One that names a label keeps its fields; paths into the map, and other mappings, merge."""
    base = load(BASE, registry)
    assert list(base.reward) == ["shine"] and list(base.objective) == ["clip"]
    mine = load(BASE, registry, "reward={essay: {}, polish: {use: shine}}")
    assert list(mine.reward) == ["essay", "polish"]
    (said,) = mine.removed
    assert "reward.shine" in said and "override `reward={essay" in said
    kept = load(BASE, registry, "objective={clip: {reduce: token_mean}, near: {}}")
    assert list(kept.objective) == ["clip", "near"] and kept.removed == ()
    assert kept.objective["clip"].model_dump() == base.objective["clip"].model_dump() | {
        "reduce": "token_mean"
    }
    added = load(BASE, registry, "reward.polish={use: shine}", "train={num_prompts: 5}")
    assert list(added.reward) == ["shine", "polish"] and added.removed == ()
    assert (added.train.num_prompts, added.train.iterations) == (5, base.train.iterations)


def test_what_measures_are_given_as_a_mapping_are_all_there_are(registry: Registry) -> None:
    both = "evaluate: {metrics: {jury: {}, shine: {}}}"
    for override in ("evaluate.metrics={jury: {}}", "evaluate={metrics: {jury: {}}}"):
        found = child(both, registry, override)
        assert list(found.metrics) == ["jury"] and "evaluate.metrics.shine" in found.removed[0]
    last = child(both, registry, "evaluate.metrics={jury: {}}", "evaluate.metrics.polish.use=shine")
    assert list(last.metrics) == ["jury", "polish"]
    null = child(both, registry, "evaluate.metrics={jury: null, polish: {use: shine}}")
    assert list(null.metrics) == ["polish"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.iteratons=3", "train.iteratons: unknown key; did you mean `iterations`?"),
        ("trian.iterations=3", "trian: unknown key; did you mean `train`?"),
        ("train.lr=3", "train.lr: unknown key; it is called `learning_rate` here"),
        ("objective.clp.epsilon=3", "objective.clp: unknown objective `clp`; did you mean `clip`"),
        ("train.iterations", "should look like"),
        ("train..iterations=3", "should look like"),
        ("=3", "should look like"),
        ("train.iterations=", "has no value"),
        ("train.iterations=[", "cannot be read"),
        ("train.iterations=!!int 3", "tags such as `!!int`"),
        ("extends=other", "a parent cannot be overridden"),
        ("train.iterations.x=3", "train.iterations: should be a whole number, not a mapping"),
        ("train=3", "train: should be a mapping"),
        ("run.name=../x", "run.name: should be up to 128 letters"),
    ],
)
def test_wrong_overrides(registry: Registry, override: str, message: str) -> None:
    (line,) = failure(BASE, registry, override)
    assert line.startswith(f"override `{override}`: ")
    assert message in line


# Mistakes, each one line with file and line number

MISTAKES: Mapping[str, tuple[str, str]] = {
    "unknown key": ("train: {iteratons: 1}", "2: train.iteratons: unknown key; did you mean `iter"),
    "unknown section": ("trian: {}", "2: trian: unknown key; did you mean `train`?"),
    "unknown component": ("reward: {shin: {}}", "2: reward.shin: unknown reward `shin`; did you"),
    "unknown use": ("sampler: {use: tos}", "2: sampler.use: unknown sampler `tos`; did you mean"),
    "kind": ("objective: {shine: {}}", "2: objective.shine: unknown objective `shine`; `shine` is"),
    "nested unknown": ("policy: {edge: {widht: 1}}", "2: policy.edge.widht: unknown key; did you "),
    "nested type": ("policy: {edge: {milled: 1}}", "2: policy.edge.milled: should be true or fals"),
    "wrong home": ("train: {num_inference_steps: 1}", "it belongs at `sampler.num_inference_steps"),
    "seed": ("train: {seed: 1}", "2: train.seed: unknown key; it belongs at `run.seed`"),
    "beta": ("objective: {clip: {beta: 1}}", "unknown key; GenRL writes it as `objective.kl.weigh"),
    "num_iterations": ("train: {num_iterations: 1}", "unknown key; it is called `num_updates` her"),
    "group_size": ("train: {group_size: 1}", "it is called `num_generations` here"),
    "epochs": ("train: {epochs: 1}", "it is called `num_updates` here"),
    "guidance": ("sampler: {guidance: 1}", "it is called `guidance_scale` here"),
    "steps": ("sampler: {steps: 1}", "it is called `num_inference_steps` here"),
    "bool for int": ("train: {iterations: true}", "should be a whole number, not true"),
    "bool for float": ("train: {learning_rate: true}", "should be a number, not true"),
    "text for int": ("train: {iterations: '5'}", "should be a whole number, without quotes, not"),
    "octal": ("train: {iterations: 017}", "not the text '017'"),
    "float for int": ("train: {iterations: 1.5}", "should be a whole number, not 1.5"),
    "yes for bool": ("policy: {edge: {milled: yes}}", "should be true or false, not the text 'yes"),
    "nan": ("train: {learning_rate: .nan}", "should be a finite number, not nan"),
    "inf": ("train: {learning_rate: .inf}", "should be a finite number, not inf"),
    "overflow": ("train: {learning_rate: 1e999}", "should be a finite number, not inf"),
    "bound": ("train: {num_prompts: 0}", "should be at least 1, not 0"),
    "open bound": ("train: {learning_rate: 0}", "should be greater than 0, not 0"),
    "choice": ("sampler: {schedule: cosin}", "not the text 'cosin'; did you mean `cosine`?"),
    "too long": ("train: {adam_betas: [1.0, 2.0, 3.0]}", "should have at most 2 items, not 3"),
    "entry": ("train: {adam_betas: [1.0, x]}", "2: train.adam_betas.1: should be a number, not th"),
    "union": ("policy: {label: [1]}", "policy.label: should be text, not a list, or should be a w"),
    "validator": ("train: {steps: {count: 2}}", "2: train.steps: count goes with first, last"),
    "list for mapping": ("train: [1]", "2: train: should be a mapping"),
    "text for component": ("sampler: toss", "2: sampler: should be a mapping such as {use: NAME}"),
    "no use": ("policy: null\nsampler: null", ""),
    "number as use": ("sampler: {use: 3}", "2: sampler.use: should be a name, not 3"),
    "metrics": ("evaluate: {metrics: {jur: {}}}", "2: evaluate.metrics.jur: unknown reward `jur`"),
    "sweep": ("evaluate: {baseline_sweep: {noise: [-1]}}", "baseline_sweep.noise: should be at l"),
    "sweep field": ("evaluate: {baseline_sweep: {nois: [1]}}", "did you mean `noise`?"),
    "evaluation": ("evaluate: {sampler: {noise: x}}", "2: evaluate.sampler.noise: should be a num"),
    "duplicate": ("train: {iterations: 1, iterations: 2}", "2: train.iterations: duplicate key; f"),
    "tag": ("train: !!python/object:os.system {}", "2: tags such as `!!python/object:os.system`"),
    "local tag": ("run: {name: !include x.yaml}", "2: tags such as `!include` are not allowed"),
    "number key": ("train: {1: 2}", "2: train: keys are text, not 1; put it in quotes"),
    "merge key": ("x: &x {iterations: 1}\ntrain: {<<: *x}", "3: train.<<: unknown key; GenRL writ"),
    "syntax": ("train: {", "not valid YAML"),
    "tab": ("train:\n\titerations: 1", "3: not valid YAML"),
    "two documents": ("---\na: 1\n---\nb: 1", "not valid YAML"),
    "depth": ("x: " + "[" * 200 + "]" * 200, "too many nested levels"),
    "deeper": ("x: " + "[" * 100_000, "nest"),
    "alias bomb": ("\n".join(["a: &a [x, x]"] + [
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
    ]), "aliases repeat too much"),
    "recursive": ("a: &a [*a]", "aliases repeat too much"),
    "run name": ("run: {name: ../x}", "run.name: should be up to 128 letters, digits"),
    "hidden name": ("run: {name: .x}", "run.name: should be up to 128 letters, digits"),
    "absolute name": ("run: {name: /x}", "run.name: should be up to 128 letters, digits"),
    "requires": ("requires: [genrl-core>=99]", "requires.0: needs genrl-core>=99, but genrl-core "),
    "not installed": ("requires: [no-such-package-x]", "is not installed; pip install"),
    "no requirement": ("requires: ['!!']", "`!!` is no requirement"),
    "requires type": ("requires: genrl-core", "2: requires: should be a list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind, (_, message) in MISTAKES.items() if message])
def test_mistakes_are_one_line_with_the_place_and_the_way_out(
    registry: Registry, kind: str
) -> None:
    text, message = MISTAKES[kind]
    lines = failure(f"extends: base.yaml\n{text}\n", registry)
    denoising = [line for line in lines if message in line]
    assert denoising, lines
    assert re.match(r"mine\.yaml:\d+: ", denoising[0])
    assert "pydantic" not in denoising[0]
    if kind != "merge key":
        assert len(lines) == 1, lines


def test_a_missing_field_says_what_it_is_and_where_to_put_it(registry: Registry) -> None:
    (line,) = failure("extends: base.yaml\ntrain: {iterations: null}\n", registry)
    assert line == (
        "mine.yaml:2: train.iterations: is missing: outer iterations. "
        "Add `iterations: ...` under `train`"
    )
    (line,) = failure("extends: base.yaml\nobjective:\n  second: {use: clip}\n", registry)
    assert "mine.yaml:3: objective.second.epsilon: is missing: clip of the ratio" in line
    assert line.endswith("Add `epsilon: 0.2` under `objective.second`")
    (line,) = failure("extends: base.yaml\npolicy: {use: null}\n", registry)
    assert line == "mine.yaml:2: policy.use: is missing: which policy? Registered: coin, token"


def test_all_problems_come_at_once_each_at_its_own_line(registry: Registry) -> None:
    text = "extends: base.yaml\ntrain:\n  iterations: x\n  lr: 1\n"
    text += "reward: {shin: {}}\nrun: {name: a/b}\n"
    lines = failure(text, registry, "sampler.nois=1")
    assert {line.split(": ")[0] for line in lines} == {
        "mine.yaml:3", "mine.yaml:4", "mine.yaml:5", "mine.yaml:6", "override `sampler.nois=1`",
    }  # fmt: skip


def test_a_mistake_in_a_parent_is_named_there(registry: Registry) -> None:
    Path("base.yaml").write_text(BASE + "  lr: 1\n")
    assert failure("extends: base.yaml\n", registry)[0].startswith("base.yaml:12: train.lr: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mine.yaml: is empty"),
        (b"# nothing\n", "mine.yaml: is empty"),
        (b"- 1\n", "mine.yaml: should be a mapping of sections, not a list"),
        (b"hello\n", "mine.yaml: should be a mapping of sections, not the text 'hello'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "mine.yaml: is not a text file in UTF-8"),
        (b"a: \x00", "mine.yaml: is not a text file in UTF-8"),
        (b"a: \x07", "mine.yaml: not valid YAML"),
        (b"a: " + b"x" * (1 << 20), "mine.yaml: is larger than 1 MiB"),
        (b"extends: mine.yaml\n", "mine.yaml:1: extends: leads back to itself"),
        (b"extends: other.yaml\n", "mine.yaml:1: extends: there is no file other.yaml"),
        (b"extends: digits/nosuch\n", "mine.yaml:1: extends: unknown recipe `digits/nosuch`"),
        (
            b"extends: [a, b]\n",
            "mine.yaml:1: extends: should be one recipe's name or path, not a l",
        ),
    ],
)
def test_files_that_are_no_recipes(registry: Registry, content: bytes, message: str) -> None:
    Path("mine.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as error:
        load_recipe("mine.yaml", registry=registry)
    (line,) = str(error.value).splitlines()
    assert line.startswith(message)


def test_a_long_circle_of_parents_is_shown(registry: Registry) -> None:
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml:1: extends: .*: a\.yaml > b\.yaml > a\.yaml"):
        load_recipe("a.yaml", registry=registry)


def test_names_paths_and_folders(registry: Registry, folder: Path) -> None:
    registry.recipe_folders.append((folder, registry.plugins[0]))
    assert load_recipe("base", registry=registry).name == "base"
    assert load_recipe(folder / "base.yaml", registry=registry).name == "base"
    with pytest.raises(RecipeError, match=r"unknown recipe `bse`; did you mean `base`\?"):
        load_recipe("bse", registry=registry)
    with pytest.raises(RecipeError, match=r"recipe file nowhere\.yaml does not exist"):
        load_recipe("nowhere.yaml", registry=registry)
    with pytest.raises(RecipeError, match="neither recipe nor run"):
        load_recipe(folder, registry=registry)
