"""Third parties' packages, built and installed elsewhere, work; broken ones disturb nobody.

``genrl_stripes`` extends a paradigm of GenRL. ``genrl_orders`` brings a paradigm of its own, with a
Markov sampler and one that is none, an objective, a reward and recipes.

Each environment is a fresh ``python -m venv --system-site-packages``. Where the tests themselves
run in a virtual environment, that option shows the base Python's packages and not ours, so a
``.pth`` file adds ours, with the hooks of editable installs.
"""

import ast
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

import genrl_core

SOURCE = Path(__file__).parent / "third_party"
PACKAGE = SOURCE / "genrl_stripes"
ORDERS = SOURCE / "orders"


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


IGNORED = shutil.ignore_patterns("__pycache__", "conftest.py", "test_*.py", "ink.py", "orders")
"""Of a source folder: what is not part of its distribution."""


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The third party's package, built from a copy by its own pyproject, and installed."""
    folder = tmp_path_factory.mktemp("stripes")
    copy = shutil.copytree(SOURCE, folder / "source", ignore=IGNORED)
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


# --- a paradigm of one's own ---


LOSERS = '''"""The opposite objective: samples that are worse than their baseline become rarer."""

from genrl_core import Batch, Objective, ObjectiveConfig, Register, hookimpl


class Losers(Objective):
    """``-min(A, 0) log p``."""

    separable = True

    def loss(self, batch: Batch):
        return batch.reduce(-batch.advantage.clamp(max=0) * batch.log_probs, "sum"), {}


class LosersConfig(ObjectiveConfig):
    """Unlearns the samples that are worse than their baseline."""

    def build(self) -> Objective:
        return Losers()


@hookimpl
def register_objectives(register: Register) -> None:
    register("losers", LosersConfig)
'''


@pytest.fixture(scope="module")
def orders_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the other package, with one objective more: a file, and a line that names it."""
    copy = tmp_path_factory.mktemp("orders") / "source"
    ignored = shutil.ignore_patterns("__pycache__", "test_*.py")
    shutil.copytree(ORDERS, copy, ignore=ignored)
    (copy / "genrl_orders" / "losers.py").write_text(LOSERS)
    project = copy / "pyproject.toml"
    project.write_text(project.read_text() + 'losers = "genrl_orders.losers"\n')
    return copy


@pytest.fixture(scope="module")
def orders(orders_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment.create(tmp_path_factory.mktemp("orders") / "venv")
    made.install(orders_source)
    return made


def test_one_more_objective_is_one_file_and_one_line(
    orders_source: Path, orders: Environment
) -> None:
    def texts(folder: Path) -> dict[str, str]:
        kept = {".py", ".toml", ".yaml", ".txt"}
        files = (path for path in sorted(folder.rglob("*")) if path.suffix in kept)
        return {str(path.relative_to(folder)): path.read_text() for path in files}

    before, after = texts(ORDERS), texts(orders_source)
    del before["test_orders.py"]
    assert after.keys() - before.keys() == {"genrl_orders/losers.py"}
    (changed,) = (name for name in before if before[name] != after[name])
    assert changed == "pyproject.toml"
    assert after[changed].removeprefix(before[changed]).count("\n") == 1
    shelves = json.loads(orders.genrl("ls", "objectives", "--json").stdout)
    (row,) = [row for row in shelves if row["name"] == "losers"]
    assert row["plugin"] == "losers"
    assert Path(row["path"]).is_relative_to(orders.packages)


def test_a_paradigm_of_its_own_is_in_the_matrix(orders: Environment) -> None:
    found = json.loads(orders.genrl("ls", "objectives", "--matrix", "--json").stdout)
    cells = {
        (c["sampler"], c["objective"], c["view"]): c for c in found if c["paradigm"] == "orders"
    }
    trains = {key for key, cell in cells.items() if cell["verdict"] == "trains"}
    assert trains >= {
        ("pick", "winners", "steps"), ("sort", "winners", "steps"), ("pick", "losers", "steps"),
        ("pick", "grpo", "steps"), ("sort", "dpo", "elbo"), ("pick", "entropy", "steps"),
    }  # fmt: skip
    refused = cells["sort", "entropy", "steps"]
    assert refused["verdict"] == "refused"
    assert "distribution depends on those before it; take the sampler pick" in refused["reason"]


def test_both_samplers_train_and_its_own_tests_pass(orders: Environment) -> None:
    """Two iterations by each sampler with drift < 1e-5 are among them."""
    tests = shutil.copy(ORDERS / "test_orders.py", orders.folder)
    done = orders.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


PUBLIC = {
    "genrl_core": set(genrl_core.__all__), "genrl_core.functional": None,
    "genrl_core.testing": None, "genrl_core.runs": None, "genrl_models": None,
}  # fmt: skip
"""Module -> its public names, or None for all that have no underscore."""
PARADIGMS = ("genrl_masked", "genrl_diffusion", "genrl_autoregressive", "genrl_objectives")


def deep_imports(text: str) -> list[str]:
    """What a file takes of GenRL that is not public."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("genrl_core")]
            found += [name for name in names if name not in PUBLIC]
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            package, given = node.module.partition(".")[0], {a.name for a in node.names}
            if package in PARADIGMS:
                found += [node.module] if "." in node.module else []
            elif package in ("genrl_core", "genrl_models"):
                public = PUBLIC.get(node.module, set())
                hidden = {name for name in given if name.startswith("_")}
                found += sorted(hidden if public is None else given - public)
    return found


def test_third_parties_use_public_names_alone() -> None:
    files = [*SOURCE.rglob("*.py"), *(Path(__file__).parent / "one_file").glob("genrl_*.py")]
    assert len(files) > 10
    assert {path.name: wrong for path in files if (wrong := deep_imports(path.read_text()))} == {}


def test_what_is_not_public_is_noticed() -> None:
    text = (
        "import genrl_core.loop\nfrom genrl_core import Plan, Registry\nfrom . import x\n"
        "from genrl_core.loop.plan import plan_of\nfrom genrl_masked.policy import guided\n"
        "from genrl_core.functional import reduce, _k3\nfrom genrl_masked import MaskedPolicy\n"
    )
    assert deep_imports(text) == [
        "genrl_core.loop", "Registry", "plan_of", "genrl_masked.policy", "_k3",
    ]  # fmt: skip


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
