"""One file with an objective and a sampler kernel, installed elsewhere, is everywhere by itself."""

import json
import re
import shutil
from pathlib import Path

import pytest

from .test_third_party import Environment

SOURCE = Path(__file__).parent / "one_file"
INK = Path(__file__).parent / "third_party" / "ink.py"
"""A reward that needs no training, for ``--plugin``."""
FILE = SOURCE / "genrl_centred.py"
RECIPE = """
extends: digits/diffusion
policy: {use: digits_diffusion, weights: null}
sampler: {use: ddpm_large, num_inference_steps: 4}
reward: {digit_classifier: null, ink: {}}
objective: {grpo: null, crd: {view: steps, over: mean}}
train: {iterations: 2, num_prompts: 2, num_generations: 4}
evaluate: null
"""


@pytest.fixture(scope="module")
def centred(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Built from a copy by its own pyproject, and installed."""
    folder = tmp_path_factory.mktemp("centred")
    ignored = shutil.ignore_patterns("__pycache__", "conftest.py", "test_*.py")
    copy = shutil.copytree(SOURCE, folder / "source", ignore=ignored)
    made = Environment.create(folder / "venv")
    made.install(copy)
    shutil.rmtree(copy)
    (made.folder / "mine.yaml").write_text(RECIPE)
    return made


def test_both_are_listed(centred: Environment) -> None:
    shelves = json.loads(centred.genrl("ls", "--json").stdout)
    for shelf, name in {"objectives": "crd", "samplers": "ddpm_large"}.items():
        (row,) = [row for row in shelves[shelf] if row["name"] == name]
        assert row["plugin"] == "centred"
        assert Path(row["path"]).is_relative_to(centred.packages), "the installed copy is used"


def test_the_matrix_judges_both(centred: Environment) -> None:
    found = json.loads(centred.genrl("ls", "objectives", "--matrix", "--json").stdout)
    both = [c for c in found if (c["objective"], c["sampler"]) == ("crd", "ddpm_large")]
    assert {(c["policy"], c["view"], c["verdict"]) for c in both} >= {
        ("digits_diffusion", "steps", "trains"), ("digits_diffusion", "elbo", "trains"),
    }  # fmt: skip


def test_a_recipe_of_both_passes_the_check_and_a_bad_one_is_told(centred: Environment) -> None:
    done = centred.genrl("--plugin", INK, "check", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "digits_diffusion, ddpm_large" in done.stdout
    assert "crd [steps]" in done.stdout
    (centred.folder / "wrong.yaml").write_text(RECIPE.replace("ddpm_large", "flow_ode"))
    wrong = centred.genrl("--plugin", INK, "check", "wrong.yaml")
    assert wrong.returncode == 2
    assert "ddpm_large" in wrong.stderr.partition("Choose")[2]


def test_a_recipe_of_both_trains(centred: Environment) -> None:
    done = centred.genrl("--plugin", INK, "run", "mine.yaml", "--runs", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (centred.folder / "runs").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(line["drift"] < 1e-5 and line["grad_norm"] > 0 for line in lines)


def test_its_own_tests_pass_where_it_is_installed(centred: Environment) -> None:
    tests = shutil.copy(SOURCE / "test_centred.py", centred.folder)
    done = centred.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_it_is_short() -> None:
    """The whole file, docstrings and imports included; of the kernel all lines but blank ones."""
    text = FILE.read_text()
    (kernel,) = re.findall(r"^class DdpmLarge.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len([line for line in kernel.splitlines() if line.strip()]) <= 5
    assert len(text.splitlines()) <= 80
    assert {path.name for path in SOURCE.glob("*.py")} == {
        "conftest.py", "genrl_centred.py", "test_centred.py",
    }  # fmt: skip
