"""Who may import whom, and which words the core must not know."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genrl_core

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "genrl_core").glob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("genrl_*/**/*.py"))

PARADIGM_WORDS = {
    "masked", "diffusion", "autoregressive", "unmask", "latent", "velocity", "logits",
}  # fmt: skip

ALLOWED = {"masked_fill", "masked_fill_", "masked_select"}
"""torch's own names."""

PROSE = "re-noised or re-masked"
"""How the capability `denoising` is explained to every paradigm."""

PUBLIC = {"genrl_core", "genrl_core.functional", "genrl_core.testing"}
NAMES = {*genrl_core.__all__, "functional", "testing"}


def test_import_contracts_hold() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "5 kept, 0 broken" in done.stdout


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every name and every string outside docstrings, with its line."""
    tree = ast.parse(path.read_text())
    documents = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    documents |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(word := getattr(node, field, None), str):
                yield line, word
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documents:
            yield line, node.value


def paradigm_words(path: Path) -> list[str]:
    return [
        f"{path.name}:{line}: {word}"
        for line, text in words_of(path)
        for word in re.findall(r"[A-Za-z_]+", text.replace(PROSE, ""))
        if word not in ALLOWED
        and PARADIGM_WORDS & {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", word)}
    ]


@pytest.mark.parametrize("path", [p for p in CORE if p.stem != "toys"], ids=lambda p: p.stem)
def test_the_core_knows_no_paradigm(path: Path) -> None:
    assert paradigm_words(path) == []


def test_the_word_test_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        '"""masked is fine here"""\nimport a.diffusion\nx.logits = maskedThing("latent")\n'
    )
    assert len(paradigm_words(path)) == 4
    path.write_text("# velocity in a comment\nx.masked_fill(mask, 0)\nunmasker = 1\n")
    assert paradigm_words(path) == []


def deep_imports(path: Path) -> list[str]:
    """Imports of the core beyond its public modules and names, wherever they stand."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        wrong: list[str] = []
        if isinstance(node, ast.Import):
            wrong = [a.name for a in node.names if a.name.startswith("genrl_core.")]
            wrong = [name for name in wrong if name not in PUBLIC]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "genrl_core":
            if node.module not in PUBLIC:
                wrong = [str(node.module)]
            elif node.module == "genrl_core":
                wrong = [alias.name for alias in node.names if alias.name not in NAMES]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            wrong = [node.attr] if node.value.id == "genrl_core" and node.attr not in NAMES else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            deep = re.fullmatch(r"genrl_core\.[a-z_.]+", node.value)
            wrong = [node.value] if deep and node.value not in PUBLIC else []
        found += [f"{path.name}:{getattr(node, 'lineno', 0)}: {name}" for name in wrong]
    return found


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_plugins_import_nothing_deeper_than_the_public_modules(path: Path) -> None:
    assert deep_imports(path) == []


def test_the_import_test_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import genrl_core.testing\nfrom genrl_core import Policy, functional\n"
        "def f():\n    import genrl_core.loop.trainer\n"
        "    from genrl_core.interfaces.records import Plan\n"
        "    from genrl_core import loop\n    importlib.import_module('genrl_core.loop.plan')\n"
        "    genrl_core.recipe.load_recipe\n"
    )
    assert len(deep_imports(path)) == 5


def test_public_names_exist_and_agree() -> None:
    assert sorted(genrl_core.__all__) == sorted({"__version__", *genrl_core._HOMES})
    for name in genrl_core.__all__:
        assert getattr(genrl_core, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = genrl_core.nothing_here


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, genrl_core; genrl_core.PolicyConfig; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
