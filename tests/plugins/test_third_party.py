"""A third party's package, built and installed elsewhere, works; broken ones disturb nobody.

Each environment is a fresh ``python -m venv --system-site-packages``. Where the tests themselves
run in a virtual environment, that option shows the base Python's packages and not ours, so a
``.pth`` file adds ours, with the hooks of editable installs.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "third_party"
PACKAGE = SOURCE / "genrl_stripes"


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees the packages of the running interpreter."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, beside: Sequence[Path] = ()) -> "Environment":
        """A fresh one; ``beside`` are further folders of installed packages."""
        # The pip that runs in it is ours, where there is one: making another takes seconds.
        ours = ["--without-pip"] if importlib.util.find_spec("pip") else []
        command = [sys.executable, "-m", "venv", "--system-site-packages", *ours, str(folder)]
        subprocess.run(command, check=True)
        made = cls(folder)
        active = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        lines = [f"import site; site.addsitedir({p!r})" for p in (*map(str, beside), *active)]
        (made.packages / "host.pth").write_text("\n".join(lines) + "\n")
        return made

    @property
    def packages(self) -> Path:
        """Where its own packages are installed."""
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """``python ARGUMENTS`` in it, far from this repository."""
        command = [str(self.folder / "bin" / "python"), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def genrl(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "genrl_core", *arguments)

    def install(self, *sources: Path) -> None:
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-input", "--quiet"]
        done = self.run("-m", "pip", "install", *options, "--disable-pip-version-check", *sources)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The third party's package, built from a copy by its own pyproject, and installed."""
    folder = tmp_path_factory.mktemp("stripes")
    ignored = shutil.ignore_patterns("__pycache__", "conftest.py", "test_*.py", "ink.py")
    copy = shutil.copytree(SOURCE, folder / "source", ignore=ignored)
    made = Environment.create(folder / "venv")
    made.install(copy)
    shutil.rmtree(copy)
    return made


def test_its_components_and_recipe_are_listed(stripes: Environment) -> None:
    shelves = json.loads(stripes.genrl("ls", "--json").stdout)
    expected = {
        "policies": "stripes", "rewards": "stripiness", "objectives": "truncated",
        "recipes": "stripes/learn",
    }  # fmt: skip
    for shelf, name in expected.items():
        (row,) = [row for row in shelves[shelf] if row["name"] == name]
        assert row["plugin"] == "stripes"
        assert Path(row["path"]).is_relative_to(stripes.packages), "the installed copy is used"


def test_its_recipe_passes_the_check(stripes: Environment) -> None:
    done = stripes.genrl("check", "stripes/learn", "digits/mask_grpo")
    assert done.returncode == 0, done.stderr
    assert "ok  stripes/learn: stripes, confidence, stripiness, truncated [steps]" in done.stdout
    missing = stripes.genrl("check", "stripes/learn", "objective.truncated.ceiling=null")
    assert missing.returncode == 2
    assert "Add `ceiling: 2.0`" in missing.stderr


def test_its_recipe_trains(stripes: Environment) -> None:
    done = stripes.genrl("run", "stripes/learn", "train.iterations=2", "--runs", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    run = stripes.folder / "runs" / "stripes-learn"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(line["drift"] < 1e-5 and line["grad_norm"] > 0 for line in lines)
    assert (run / "before_after.png").is_file()


def test_its_own_tests_pass_with_the_conformance_kit(stripes: Environment) -> None:
    tests = shutil.copy(SOURCE / "test_stripes.py", stripes.folder)
    done = stripes.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def lines_of(*files: str) -> int:
    """All of them: docstrings, imports, blank lines."""
    return sum(len((PACKAGE / file).read_text().splitlines()) for file in files)


def test_it_is_short() -> None:
    """Whole files, each with its config and its hook; nothing of a component stands elsewhere."""
    assert lines_of("policy.py", "network.py") <= 60
    assert lines_of("reward.py") <= 15
    assert lines_of("objective.py") <= 40
    assert not re.search("class|def (?!register_recipes)", (PACKAGE / "__init__.py").read_text())


@pytest.mark.parametrize("name", ["policy", "reward", "objective"])
def test_each_file_is_a_plugin_of_its_own(name: str) -> None:
    """It could have an entry point to itself: its hook is inside, and it loads no torch."""
    code = (
        "import sys; from genrl_core.registry import Registry; registry = Registry();"
        f"registry.add_module('genrl_stripes.{name}');"
        f"assert any(p.startswith('{name} ') for p in registry.plugins[0].registered);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_is_formatted_at_100_columns() -> None:
    command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated"]
    command += ["--line-length", "100", "--no-cache", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


TWIN = """
from genrl_core import RewardConfig, hookimpl

class Twin(RewardConfig):
    'One of two.'
    def build(self): raise NotImplementedError

@hookimpl
def register_rewards(register):
    register("twin", Twin)
"""

TROUBLE = {
    "absent": "\nimport no_such_module_anywhere\n",
    "heavy": "import torch\n" + TWIN.replace("twin", "heavy"),
    "twin_one": TWIN,
    "twin_two": TWIN,
}


def wheel(folder: Path, name: str, source: str) -> Path:
    """A built distribution ``acme-NAME`` of one module ``acme_NAME``, the plugin NAME."""
    info = f"acme_{name}-3.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: acme-{name.replace('_', '-')}\nVersion: 3.0\n"
    files = {
        f"acme_{name}.py": source,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[genrl_core]\n{name} = acme_{name}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    path = folder / f"acme_{name}-3.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


@pytest.fixture(scope="module")
def crowded(stripes: Environment, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The third party's package beside four that are broken or quarrel."""
    folder = tmp_path_factory.mktemp("crowded")
    made = Environment.create(folder / "venv", beside=[stripes.packages])
    made.install(*(wheel(folder, name, source) for name, source in TROUBLE.items()))
    return made


def test_broken_and_quarrelling_plugins_are_named(crowded: Environment) -> None:
    done = crowded.genrl("plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    reasons = {plugin["name"]: plugin["reason"] for plugin in found["plugins"] if plugin["reason"]}
    assert reasons.keys() == {"absent", "heavy"}
    assert reasons["absent"].startswith("ModuleNotFoundError")
    assert reasons["absent"].endswith(f"({crowded.packages / 'acme_absent.py'}:2)")
    assert reasons["heavy"] == "its entry module imports torch: do so in build() or a method"
    (clash,) = found["clashes"]
    assert "twin_one (acme-twin-one 3.0)" in clash
    assert "twin_two (acme-twin-two 3.0)" in clash
    registered = {plugin["name"]: plugin["registered"] for plugin in found["plugins"]}
    assert "policy stripes" in registered["stripes"]
    assert "objective grpo" in registered["objectives"]


def test_nobody_else_is_disturbed(crowded: Environment) -> None:
    names = {
        "quarrel": ("twin", r"acme-twin-one 3.0"),
        "isolated": ("heavy", "Broken plugins, which may hold it: absent (acme-absent 3.0)"),
    }
    for file, (reward, _) in names.items():
        recipe = f"extends: stripes/learn\nreward: {{{reward}: {{}}}}\n"
        (crowded.folder / f"{file}.yaml").write_text(recipe)
    done = crowded.genrl("check", "stripes/learn", "quarrel.yaml", "isolated.yaml", "--json")
    assert done.returncode == 2
    fine, *wrong = json.loads(done.stdout)
    assert fine == {"recipe": "stripes/learn", "ok": True, "problems": []}
    for result, (_, message) in zip(wrong, names.values(), strict=True):
        (problem,) = result["problems"]
        assert message in problem["message"]
