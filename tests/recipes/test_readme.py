"""README is true: its commands run, its snippets work, and its figures are the committed ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from genrl_core.recipe.recipe import load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    """The fenced block after a marker comment."""
    found = re.search(rf"<!-- {marker} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, f"README has no block {marker}"
    return found.group(1)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run with the interpreter's own scripts first in PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=400, check=False,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_verbs_run_as_shown(tmp_path: Path) -> None:
    done = run(["bash", "-euo", "pipefail", "-c", block("command: verbs")], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "runs/mine/run.json").read_text())["status"] == "done"
    assert (tmp_path / "three.png").is_file()


def test_the_python_snippet_runs_and_learns(tmp_path: Path) -> None:
    snippet = block("snippet: python")
    assert len(snippet.strip().splitlines()) == 9
    done = run([sys.executable, "-c", snippet], tmp_path)
    assert done.returncode == 0, done.stderr
    judged = [float(x) for x in re.findall(r"'judge': ([\d.]+)", done.stdout)]
    assert len(judged) == 2
    assert judged[1] > judged[0] + 0.2


def test_the_recipe_snippet_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(block("snippet: recipe"))
    recipe = load_recipe(path)
    assert recipe.train.steps.count == 2
    assert run(["genrl", "check", str(path)], tmp_path).returncode == 0


def test_the_mistake_is_answered_as_shown(tmp_path: Path) -> None:
    text = "extends: digits/mask_grpo\nobjective:\n  grpo: {epsilom: 0.1}\n"
    (tmp_path / "mine.yaml").write_text(text)
    done = run(["genrl", "check", "mine.yaml"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == block("output: mistake").strip()


@pytest.mark.parametrize("name", ["quick-start", "tests"])
def test_the_set_up_commands_have_one_line(name: str) -> None:
    """The commands themselves are run by .ci/run, on a clean checkout."""
    assert len(block(f"command: {name}").strip().splitlines()) == 1


def test_processes_and_chunks_are_said_to_agree_to_rounding() -> None:
    """Measured in tests/core: test_cli.py (two processes), test_trainer.py, test_resume.py."""
    (promise,) = re.findall(
        r"- \*\*Randomness belongs to samples\.\*\*.*?(?=\n- )", README, re.DOTALL
    )
    words = " ".join(promise.split())
    assert "one process or two, in any batch size, to rounding" in words
    assert "after any stop bit for bit" in words


def test_links_lead_somewhere() -> None:
    for page in [
        ROOT / "README.md",
        ROOT / "recipes" / "README.md",
        ROOT / "plugins" / "README.md",
    ]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
