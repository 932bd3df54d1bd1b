"""plugins/README.md and recipes/METRICS.md: what they show is what there is, and it runs.

``python tests/plugins/test_plugin_readme.py`` writes their code blocks and tables anew.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genrl_core import hookspecs, load_recipe
from genrl_core.interfaces.capability import Capability
from genrl_core.registry import Registry
from genrl_core.run.assembly import build_trainer
from genrl_core.run.glossary import GLOSSARY

ROOT = Path(__file__).parents[2]
README = ROOT / "plugins" / "README.md"
METRICS = ROOT / "recipes" / "METRICS.md"
THIRD_PARTY = Path(__file__).parent / "third_party"

FILE = re.compile(
    r"<!-- file: (\S+) -->\n+(?:```(?:python|toml|yaml)\n.*?\n```\n+)?(?=\S)", re.DOTALL
)
TABLE = re.compile(r"<!-- (\w+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml"}


def block(match: re.Match[str]) -> str:
    """A file of the third party's package as a code block."""
    path = THIRD_PARTY / match[1]
    return f"{match[0].splitlines()[0]}\n```{LANGUAGES[path.suffix]}\n{path.read_text()}```\n\n"


def table(match: re.Match[str]) -> str:
    """One of the generated tables."""
    rows = {"capabilities": capabilities, "hooks": hooks, "metrics": metrics}[match[1]]()
    header, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    rule = f"|{'---|' * len(rows[0])}\n"
    return f"<!-- {match[1]}: begin -->\n{header}{rule}{''.join(body)}<!-- {match[1]}: end -->"


def capabilities() -> list[tuple[str, ...]]:
    return [("capability", "it says that"), *((f"`{c.value}`", c.sentence) for c in Capability)]


def hooks() -> list[tuple[str, ...]]:
    found = [
        (f"`{name}`", (inspect.getdoc(hook) or "").splitlines()[0].replace("``", "`"))
        for name, hook in vars(hookspecs).items()
        if hasattr(hook, "genrl_core_spec")
    ]
    return [("hook", "what it does"), *found]


def metrics() -> list[tuple[str, ...]]:
    return [("metric", "meaning"), *((f"`{name}`", text) for name, text in GLOSSARY.items())]


def rendered(page: str) -> str:
    """A page with its code blocks and tables as they should be."""
    return TABLE.sub(table, FILE.sub(block, page))


@pytest.mark.parametrize("page", [README, METRICS], ids=lambda page: page.name)
def test_code_blocks_and_tables_are_what_there_is(page: Path) -> None:
    hint = "run python tests/plugins/test_plugin_readme.py"
    assert page.read_text() == rendered(page.read_text()), hint


def test_the_page_shows_the_whole_package() -> None:
    shown = set(FILE.findall(README.read_text()))
    kept = {".py", ".toml", ".yaml"}
    inside = (path for path in THIRD_PARTY.rglob("*") if "orders" not in path.parts)
    files = (path for path in inside if path.suffix in kept)
    assert shown == {str(path.relative_to(THIRD_PARTY)) for path in files} - {"conftest.py"}


def test_every_code_block_is_a_file_a_command_or_the_listing() -> None:
    text = README.read_text()
    files = len(FILE.findall(text))
    assert len(re.findall(r"^```\w*$", text, re.MULTILINE)) == 2 * (files + len(consoles()) + 1)


def consoles() -> list[list[str]]:
    """The commands of each console block."""
    blocks = re.findall(r"^```console\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [found.splitlines() for found in blocks]


def test_the_commands_without_a_package_run(tmp_path: Path) -> None:
    """As they stand, made shorter by overrides. The installed ones: see test_third_party.py."""
    shutil.copytree(THIRD_PARTY, tmp_path, dirs_exist_ok=True)
    one_file, installed, unpackaged = consoles()
    assert installed == ["pip install -e .", "genrl plugins", "genrl run stripes/learn"]
    shorter = " train.iterations=1 train.num_prompts=1 filter.min_std=null"
    shorter += " evaluate=null prompts.evaluate=null"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in (*one_file, *unpackaged):
        digits = " policy.weights=null reward.digit_classifier=null" if "digits" in command else ""
        given = command + shorter + digits if " run " in command else command
        done = subprocess.run(
            ["bash", "-c", given], cwd=tmp_path, text=True, capture_output=True, check=False,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{given}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "runs" / "stripes-learn" / "metrics.jsonl").is_file()
    assert "reward/ink" in (tmp_path / "runs" / "digits-mask_grpo" / "metrics.jsonl").read_text()


ABSENT_HERE = {
    "entropy", "non_finite", "<objective>/<metric>", "margin", "group_weight", "weight_max",
    "error", "error_far", "pull", "reward_gap", "value_error",
}  # fmt: skip
"""Entries that these recipes do not log: they need other objectives, or numbers that break."""


def entry_of(metric: str) -> str | None:
    """The entry of the glossary that explains a metric by name; ``<...>`` stands for any name."""
    named = (name for name in GLOSSARY if not name.startswith("<"))
    return next((n for n in named if re.fullmatch(re.sub("<.*?>", ".+", n), metric)), None)


def test_every_metric_of_the_digits_is_explained_and_every_entry_is_logged() -> None:
    registry = Registry.discover()
    logged: set[str] = set()
    for name in ("digits/mask_grpo_kl", "digits/masked_base"):
        short = ["train.iterations=2", "train.num_prompts=4", "train.num_generations=2"]
        recipe = load_recipe(name, [*short, "policy.weights=null"], registry)
        if recipe.prompts.evaluate:
            recipe = recipe.with_overrides("evaluate.num_generations=2")
        trainer = build_trainer(recipe)
        for _ in range(2):
            logged |= trainer.step().metrics.keys()
        if trainer.parts.evaluator.prompts:
            logged |= {f"evaluate/{measure}" for measure in trainer.evaluate().metrics}
    assert {metric for metric in logged if entry_of(metric) is None} == set()
    assert {entry_of(metric) for metric in logged} == GLOSSARY.keys() - ABSENT_HERE


if __name__ == "__main__":
    for target in (README, METRICS):
        target.write_text(rendered(target.read_text()))
