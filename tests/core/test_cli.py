"""The command line: what it prints, what it costs, and what it says about mistakes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

from genrl_core import __version__
from genrl_core.cli.app import main
from genrl_core.cli.display import table
from genrl_core.cli.matrix import Cell, print_matrix
from genrl_core.recipe.recipe import load_recipe
from genrl_core.recipe.summaries import summaries
from genrl_core.registry import Registry

POCKET = Path(__file__).parent / "pocket_plugin.py"

BASE = """\
# A coin that is tossed.
policy: {use: coin}
sampler: {use: toss}
reward:
  shine: {}
objective:
  clip: {epsilon: 0.2}
prompts: {file: train.txt}
train: {iterations: 3, num_prompts: 2, learning_rate: 1e-3}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.txt").write_text("heads\n")
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def genrl(*arguments: str, pocket: bool = True) -> int:
    return main([*arguments, *(["--plugin", str(POCKET)] if pocket else [])])


# Mistakes: one clear message, exit code 2, no traceback

MISTAKES: dict[str, tuple[str | bytes, list[str], str]] = {
    "unknown key": ("train: {iteratons: 3}", [], "mine.yaml:2: train.iteratons: unknown key; did"),
    "wrong type": ("train: {iterations: x}", [], "mine.yaml:2: train.iterations: should be a whol"),
    "true for a number": ("train: {iterations: true}", [], "should be a whole number, not true"),
    "NaN": ("train: {learning_rate: .nan}", [], "should be a finite number, not nan"),
    "duplicate key": ("run: {seed: 1, seed: 2}", [], "mine.yaml:2: run.seed: duplicate key"),
    "unknown component": ("reward: {shin: {}}", [], "unknown reward `shin`; did you mean `shine`"),
    "impossible": ("sampler: {use: drop}", [], "clip needs step_logp, which drop does not provide"),
    "unknown override": ("", ["trin.iterations=3"], "override `trin.iterations=3`: trin: unknown"),
    "tags": ("train: !!python/object:os.system {}", [], "mine.yaml:2: tags such as `!!python/obje"),
    "path trick": ("run: {name: ../../etc}", [], "mine.yaml:2: run.name: should be up to 128 let"),
    "path trick by override": ("", ["run.name=/etc/x"], "override `run.name=/etc/x`: run.name: sh"),
    "empty prompts": ("prompts: {file: empty.txt}", [], "empty.txt: the prompt file holds no prom"),
    "binary prompts": ("prompts: {file: binary.txt}", [], "binary.txt:1: not UTF-8"),
    "missing plugin file": ("", ["--plugin", "none.py"], "plugin file none.py does not exist"),
    "no plugin file": ("", ["--plugin"], "--plugin needs a file or a package folder"),
    "requires": ("requires: [genrl-core>=99]", [], "needs genrl-core>=99, but genrl-core"),
}  # fmt: skip

WHOLE: dict[str, tuple[bytes, str]] = {
    "missing parent": (b"extends: digits/nowhere", "mine.yaml:1: extends: unknown recipe"),
    "circular": (b"extends: mine.yaml", "mine.yaml:1: extends: leads back to itself"),
    "empty": (b"", "mine.yaml: is empty"),
    "binary": (b"\x00\x01\xff", "mine.yaml: is not a text file"),
    "list": (b"- a", "mine.yaml: should be a mapping of sections"),
}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert "pydantic" not in captured.err
    return captured.err


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(kind: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, arguments, message = MISTAKES[kind]
    Path("mine.yaml").write_text(f"extends: base.yaml\n{text}\n")
    Path("empty.txt").write_text("\n")
    Path("binary.txt").write_bytes(b"\xff")
    assert main([verb, "mine.yaml", "--plugin", str(POCKET), *arguments]) == 2
    err = said(capsys)
    assert message in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("verb", ["check", "run", "show", "cp"])
def test_files_that_are_no_recipe(kind: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = WHOLE[kind]
    Path("mine.yaml").write_bytes(content)
    if verb == "cp" and kind in ("missing parent", "circular"):
        assert genrl("cp", "mine.yaml", "copy.yaml") == 0, "copying reads one file alone"
        return
    assert genrl(verb, "mine.yaml", *(["copy.yaml"] if verb == "cp" else [])) == 2
    assert said(capsys).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "digits/mask_grp"], "unknown recipe `digits/mask_grp`; did you mean `digits/m"),
        (["check", "nowhere.yaml"], "recipe file nowhere.yaml does not exist"),
        (["check", "train.iterations=3"], "which recipe?"),
        (["show", "grp"], "there is no recipe and no component `grp`; did you mean `grpo`?"),
        (["show", "grpo", "a.b=1"], "`grpo` is a component (objective)"),
        (["run"], "which recipe?"),
        (["run", "--resume", "nowhere"], "--resume nowhere: there is no such run folder"),
        (["run", "base.yaml", "--stop-after", "0"], "--stop-after"),
        (["run", "base.yaml", "--stop-after", "x"], "--stop-after"),
        (["run", "base.yaml", "--processes", "0"], "--processes"),
        (["run", "base.yaml", "--no-such"], "No such option"),
        (["runn"], "No such command"),
        (["ls", "polices"], "polices"),
        (["cp", "base.yaml", "train.txt"], "train.txt exists already; choose another name"),
        (["cp", "base.yaml", "no/such/folder.yaml"], "cannot be written"),
        (["sample", "base.yaml"], "Missing option"),
        (["sample", "nowhere.yaml", "--prompt", "x", "--out", "x.png"], "does not exist"),
        (["sample", "base.yaml", "--prompt", "x", "--out", "no/x.png"], "there is no folder no"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert genrl(*arguments) == 2
    assert message in said(capsys)


def test_an_existing_run_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert genrl("run", "digits/masked_base", "run.name=a", "train.iterations=0") == 0
    capsys.readouterr()
    assert genrl("run", "digits/masked_base", "run.name=a", "train.iterations=0") == 2
    err = said(capsys)
    assert "runs/a" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["check", "show"])
def test_labels_that_an_override_removes_are_named(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert genrl(verb, "base.yaml", "reward={gleam: {use: shine}}", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "override `reward={gleam: {use: shine}}`: replaces the labels of reward and removes "
        "reward.shine\n"
    )
    assert json.loads(captured.out)


def test_several_processes_hand_their_exit_code_back(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "digits/masked_base", "run.name=a", "train.iterations=2", "run.device=cpu"]
    arguments += ["evaluate.num_generations=1", "--processes", "2"]
    assert main([*arguments, "--stop-after", "1"]) == 75
    assert "Traceback" not in capfd.readouterr().err
    alone = [word for word in arguments if word not in ("--processes", "2")]
    assert main([*alone, "run.name=b", "--stop-after", "1"]) == 75
    two, one = (json.loads(Path(f"runs/{n}/metrics.jsonl").read_text()) for n in "ab")
    for name in ("loss", "grad_norm"):  # float32: as README says, to 1e-7 of their size or so
        assert two[name] == pytest.approx(one[name], rel=1e-6)
    assert main(arguments) == 2, "the folder exists"
    assert "runs/a" in capfd.readouterr().err


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text('extends: base.yaml\nreward: {"\\e[31mred\\u202e": {}}\n')
    assert genrl("check", "mine.yaml") == 2
    err = said(capsys)
    assert "?[31mred" in err
    assert "\x1b" not in err
    assert "\u202e" not in err


# Verbs


def test_a_narrow_terminal_goes_without_what_is_spare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, rows = ["name", "summary", "plugin"], [["coin", "what it is " * 5, "mint"]]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = {}
    for columns in (60, 72, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        table("shelf", headers, rows, spare=("plugin", "summary"))
        said = capsys.readouterr().out
        shown[columns] = [word for word in headers if word in said]
    assert shown == {60: ["name"], 72: ["name", "summary"], 120: headers}


def test_the_matrix_says_with_which_samplers_an_objective_trains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cell(policy: str, sampler: str, objective: str, trains: bool) -> Cell:
        verdict: Literal["trains", "refused"] = "trains" if trains else "refused"
        return Cell("metal", policy, sampler, objective, "steps", verdict, "" if trains else "why")

    pairs = [("coin", "toss"), ("disc", "toss"), ("coin", "spin"), ("disc", "spin")]
    found = [cell(*pair, "every", trains=True) for pair in pairs]
    found += [cell(*pair, "some", trains=pair != ("disc", "spin")) for pair in pairs]
    found += [cell(*pair, "never", trains=False) for pair in pairs]
    print_matrix(found, as_json=False)
    rows = {
        line.split()[0]: line.split(maxsplit=2)[2]
        for line in capsys.readouterr().out.splitlines()[2:5]
    }
    assert {name: rest.strip() for name, rest in rows.items()} == {
        "every": "all", "some": "toss, spin (coin)", "never": "-",
    }  # fmt: skip


def test_ls_lists_every_shelf(capsys: pytest.CaptureFixture[str]) -> None:
    assert genrl("ls") == 0
    out = capsys.readouterr().out
    for word in ("policies", "samplers", "rewards", "objectives", "recipes", "digits/mask_grpo"):
        assert re.search(rf"^ *{word}\b", out, re.MULTILINE), word
    assert re.search(r"^  toss +coin +step_logp +Toss the coin step by step\.", out, re.MULTILINE)
    assert genrl("ls", "--json") == 0
    shelves = json.loads(capsys.readouterr().out)
    toss = next(row for row in shelves["samplers"] if row["name"] == "toss")
    assert (toss["paradigm"], toss["provides"]) == ("coin", ["step_logp"])
    clip = next(row for row in shelves["objectives"] if row["name"] == "clip")
    assert (clip["view"], clip["needs"]) == ("steps", ["step_logp"])
    assert genrl("ls", "rewards", "--json") == 0
    assert {"shine", "essay", "jury"} <= {
        row["name"] for row in json.loads(capsys.readouterr().out)
    }


def test_show_says_where_each_value_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("extends: base.yaml\ntrain: {iterations: 9}\n")
    assert genrl("show", "mine.yaml", "run.seed=5") == 0
    out = capsys.readouterr().out
    assert re.search(r"^  iterations: 9 +# mine\.yaml:2$", out, re.MULTILINE)
    assert re.search(r"^  num_prompts: 2 +# base\.yaml:9$", out, re.MULTILINE)
    assert re.search(r"^  seed: 5 +# override `run\.seed=5`$", out, re.MULTILINE)
    assert re.search(r"^  num_generations: 8 +# default$", out, re.MULTILINE)
    assert re.search(r"^    use: shine +# the label, base\.yaml:5$", out, re.MULTILINE)
    Path("shown.yaml").write_text(out)
    assert genrl("check", "shown.yaml") == 0, "what show prints is a recipe"
    assert genrl("show", "mine.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["resolved"]["run"]["seed"] == 0


def test_show_a_component(capsys: pytest.CaptureFixture[str]) -> None:
    assert genrl("show", "toss") == 0
    out = capsys.readouterr().out
    assert out.startswith("sampler toss: Toss the coin step by step.\n")
    assert "  provides: step_logp\n" in out
    assert re.search(r"num_inference_steps +whole number >= 1 +4 +network calls per sample", out)
    assert re.search(r"schedule +cosine \| linear +\"cosine\"", out)
    assert genrl("show", "coin") == 0
    assert "paper: arXiv 0000.00000" in capsys.readouterr().out
    assert genrl("show", "clip", "--json") == 0
    (clip,) = json.loads(capsys.readouterr().out)
    epsilon = next(field for field in clip["fields"] if field["name"] == "epsilon")
    assert epsilon["required"]
    assert epsilon["type"] == "number > 0"


def test_cp_copies_the_text_and_keeps_its_paths(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("elsewhere").mkdir()
    Path("mine.yaml").write_text("extends: base.yaml  # parent\nprompts: {evaluate: train.txt}\n")
    assert genrl("cp", "mine.yaml", "elsewhere/copy.yaml") == 0
    assert Path("elsewhere/copy.yaml").read_text() == (
        f"extends: {folder}/base.yaml  # parent\nprompts: {{evaluate: {folder}/train.txt}}\n"
    )
    assert genrl("check", "elsewhere/copy.yaml") == 0
    assert genrl("cp", "digits/mask_grpo", "digits.yaml") == 0
    assert "extends: digits/masked" in Path("digits.yaml").read_text()
    assert genrl("check", "digits.yaml") == 0
    assert "ok  digits: digits_masked, confidence" in capsys.readouterr().out


def test_check_several_recipes_with_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("extends: base.yaml\ntrain: {x: 1, y: 2}\n")
    assert genrl("check", "base.yaml", "bad.yaml", "run.seed=3") == 2
    captured = capsys.readouterr()
    assert captured.out == "ok  base: coin, toss, shine, clip [steps]\n"
    assert len(captured.err.splitlines()) == 2
    assert genrl("check", "base.yaml", "bad.yaml", "--json") == 2
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["ok"], good["problems"]) == (True, [])
    assert [p["path"] for p in bad["problems"]] == ["train.x", "train.y"]
    assert bad["problems"][0]["place"] == "bad.yaml:2"


def test_every_recipe_passes_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert genrl("ls", "recipes", "--json") == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    names = [name for name in names if name != "digits/masked"]  # a parent without an objective
    assert names
    assert genrl("check", *names) == 0, capsys.readouterr().err


def test_every_recipe_says_what_it_combines(capsys: pytest.CaptureFixture[str]) -> None:
    """The quick listing says what reading the whole recipe says."""
    assert genrl("ls", "recipes", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    for name, row in rows.items():
        recipe = load_recipe(name)
        assert recipe.policy is not None
        assert row["paradigm"] == recipe.policy.paradigm, name
        names = [recipe.registry.name_of(config) for config in recipe.objective.values()]
        assert row["objectives"] == names, name
        assert row["paper"] or not any(config.paper for config in recipe.objective.values()), name
        assert not row["problem"]
    assert rows["digits/flow_grpo"]["paper"] == "arXiv 2505.05470"  # its own comment
    assert rows["digits/mask_grpo_kl"]["paper"] == "arXiv 2510.13418"  # its parent's
    assert rows["digits/masked"]["paper"] == "arXiv 2402.03300"  # its objective's
    assert genrl("ls", "recipes") == 0
    line = r"^  digits/flow_grpo +diffusion +grpo +arXiv 2505\.05470 +Flow-GRPO"
    assert re.search(line, capsys.readouterr().out, re.MULTILINE)


OUTLINED = {
    "base": "# Of arXiv 2501.00001.\n" + BASE,
    "child": "extends: base.yaml\nobjective: {clip: {epsilon: 0.1}, more: {use: clip}}\n",
    "other": "# Plain.\nextends: base.yaml\nobjective: {clip: null, new: {use: clip}}\n",
    "named": "extends: base.yaml\nobjective: {clip: {use: nothing}}\nrun: {name: null}\n",
    "none": "extends: base.yaml\nobjective: null\npolicy: null\n",
    "loop": "extends: pool.yaml\n",
    "pool": "extends: loop.yaml\n",
    "orphan": "extends: nowhere.yaml\n",
    "torn": "policy: {use: [\n",
    "list": "- policy\n",
}


def test_the_outline_follows_parents_and_survives_broken_files(tmp_path: Path) -> None:
    for name, text in OUTLINED.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    registry = Registry.discover([POCKET])
    registry.recipe_folders.append((tmp_path, registry.plugins[0]))
    found = {one.name: one for one in summaries(registry) if one.name in OUTLINED}
    said = {name: (one.paradigm, one.objectives, one.paper) for name, one in found.items()}
    number = "arXiv 2501.00001"
    assert said["base"] == ("coin", ("clip",), number)
    assert said["child"] == ("coin", ("clip", "clip"), number)
    assert said["other"] == ("coin", ("clip",), number)
    assert said["named"] == ("coin", ("nothing",), "")
    assert said["none"] == ("coin", (), "")
    problems = {name: one.problem for name, one in found.items() if one.problem}
    assert problems.keys() == {"loop", "pool", "orphan", "torn", "list"}
    assert "leads back to itself" in problems["loop"] and "leads back" in problems["pool"]
    assert "there is no file" in problems["orphan"]
    assert "torn.yaml:" in problems["torn"]
    assert "should be a mapping of sections" in problems["list"]


def test_sixty_recipes_are_listed_in_a_moment(tmp_path: Path) -> None:
    for number in range(60):
        parent = f"extends: r{number - 1}.yaml\n" if number % 6 else BASE
        (tmp_path / f"r{number}.yaml").write_text(parent + "evaluate: {every: 5}\n")
    registry = Registry.discover([POCKET])
    registry.recipe_folders.append((tmp_path, registry.plugins[0]))
    before = time.process_time()
    assert len(summaries(registry)) >= 60
    assert time.process_time() - before < 0.3


def test_plugins_lists_what_each_registers(capsys: pytest.CaptureFixture[str]) -> None:
    assert genrl("plugins") == 0
    out = capsys.readouterr().out
    assert re.search(rf"^  masked +genrl-core {re.escape(__version__)} ", out, re.MULTILINE)
    assert "command flip, objective clip" in out
    assert genrl("plugins", "--json") == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["clashes"] == []
    assert {"name", "version", "path", "registered", "reason"} <= listing["plugins"][0].keys()


def test_a_broken_plugin_is_named_where_something_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    Path("acme_broken.py").write_text("import no_such_module_anywhere\n")
    info = Path("acme-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[genrl_core]\nacme = acme_broken\n")
    assert genrl("check", "base.yaml") == 0
    assert genrl("check", "base.yaml", "reward.gloss={}") == 2
    assert "Broken plugins, which may hold it: acme (acme 1.0): ModuleNotFound" in said(capsys)
    assert genrl("ls") == 0
    assert "acme (acme 1.0) is broken: ModuleNotFoundError" in said(capsys)
    assert genrl("plugins") == 0
    assert "BROKEN: ModuleNotFoundError: No module named" in capsys.readouterr().out


def test_plugin_commands_and_plugin_files_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flip", "--times", "2", f"--plugin={POCKET}"]) == 0
    assert capsys.readouterr().out == "heads heads \n"
    assert main(["--plugin", str(POCKET), "flip"]) == 0
    assert main(["flip"]) == 2, "without its file the verb does not exist"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"genrl {__version__}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("ls", "show", "cp", "check", "run", "sample", "plugins"):
        assert re.search(rf"^  {verb} ", out, re.MULTILINE)


# What it costs, in a process of its own


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "genrl_core", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [(["--help"], 0.35), (["ls"], 0.35), (["ls", "recipes"], 0.35), (["show", "grpo"], 0.5),
     (["show", "digits/mask_grpo"], 0.5), (["check", "digits/mask_grpo"], 0.5)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_reading_verbs_are_quick_and_load_no_torch(arguments: list[str], limit: float) -> None:
    code = (
        "import sys; from genrl_core.__main__ import main; code = main(sys.argv[1:]);"
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    bare, seconds = [], []
    for _ in range(3):
        bare.append(processor_seconds("import typer.main, pydantic, yaml, pluggy"))
        seconds.append(processor_seconds(code, *arguments))
    # Or as much of the libraries' own time, where the machine is slower or shared.
    assert min(seconds) <= max(limit, 10 * limit * min(bare)), (seconds, bare)


def processor_seconds(code: str, *arguments: str) -> float:
    """What a Python process costs that runs ``code``, which must exit with 0."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, check=False
    )
    after = os.times()
    assert done.returncode == 0
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


def test_mistakes_through_the_real_command(folder: Path) -> None:
    for name, content in (("empty.yaml", b""), ("binary.yaml", b"\x00\xff"), ("a.yaml", b"a: {")):
        Path(name).write_bytes(content)
        done = command("check", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(name)
        assert len(done.stderr.splitlines()) == 1
    done = command("run", "base.yaml", "--plugin", "none.py")
    assert (done.returncode, done.stderr) == (2, "plugin file none.py does not exist\n")
    assert command("nonsense").returncode == 2


def test_a_closed_pipe_is_no_traceback() -> None:
    line = f"{sys.executable} -m genrl_core ls | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
