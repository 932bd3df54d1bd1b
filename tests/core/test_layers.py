"""Who may import whom, and which words the core must not know."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import genrl_core

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "genrl_core").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("genrl_*/**/*.py"))

PARADIGM_WORDS = {
    "masked", "diffusion", "autoregressive", "unmask", "latent", "velocity", "logits",
}  # fmt: skip

ALLOWED = {"masked_fill", "masked_fill_", "masked_select"}
"""torch's own names."""

PROSE = "re-noised or re-masked"
"""How the capability `denoising` is explained to every paradigm."""

PUBLIC_MODULES = {"functional", "testing", "runs"}
PUBLIC = {"genrl_core", *(f"genrl_core.{name}" for name in PUBLIC_MODULES)}
NAMES = {*genrl_core.__all__, *PUBLIC_MODULES}

RANKS = tuple(f"genrl_core/{p}.py" for p in ("loop/distributed", "run/trackers", "run/optimizer"))
DOORS = {
    "torch.distributed": RANKS,
    "accelerate": RANKS,
    "xformers": ("plugins/genrl_models/",),
    "yaml": ("genrl_core/recipe/reader.py",),
    "matplotlib": ("genrl_core/run/pictures.py", "plugins/"),
    "PIL": ("genrl_core/run/pictures.py", "plugins/"),
}
"""What few may import -> where it may be imported, files and folders."""

WITHOUT_TORCH = ("configs", "objective", "batch", "media", "reward")
"""Modules of genrl_core.interfaces that load no torch; nor does anything in genrl_core.recipe."""


def test_import_contracts_hold() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout), done.stdout[-3000:]


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
        f"{path}:{line}: {word}"
        for line, text in words_of(path)
        for word in re.findall(r"[A-Za-z_]+", text.replace(PROSE, ""))
        if word not in ALLOWED
        and PARADIGM_WORDS & {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", word)}
    ]


def lines_of(look: Callable[[Path], list[str]], paths: Iterable[Path]) -> str:
    """What was found, a line each; empty for nothing."""
    return "".join(f"\n{line}" for path in paths for line in look(path))


def test_the_core_knows_no_paradigm() -> None:
    assert len(CORE) > 40
    assert not (found := lines_of(paradigm_words, CORE)), found


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
        found += [f"{path}:{getattr(node, 'lineno', 0)}: {name}" for name in wrong]
    return found


def test_plugins_import_nothing_deeper_than_the_public_modules() -> None:
    assert len(PLUGINS) > 40
    assert not (found := lines_of(deep_imports, PLUGINS)), found


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


def passing_the_doors(path: Path, place: str) -> list[str]:
    """Uses of what few may import, by a file that is not one of them, wherever they stand."""
    shut = [what for what, doors in DOORS.items() if not place.startswith(doors)]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)] if ast.unparse(node) == "torch.distributed" else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        line = getattr(node, "lineno", 0)
        found += [
            f"{place}:{line}: {what}"
            for what in shut
            if any(f"{name}.".startswith(f"{what}.") for name in names)
        ]
    return found


def test_some_libraries_are_behind_one_door() -> None:
    def look(path: Path) -> list[str]:
        return passing_the_doors(path, path.relative_to(ROOT).as_posix())

    assert not (found := lines_of(look, [*CORE, *PLUGINS])), found


def test_another_door_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import torch\nimport torch.distributed as dist\nfrom torch import distributed, nn\n"
        "def f():\n    from yaml.reader import Reader\n    import_module('xformers.ops')\n"
        "    torch.distributed.barrier()\n    import accelerated, PIL\n"
    )
    found = passing_the_doors(path, "genrl_core/x.py")
    assert [line.rpartition(": ")[2] for line in found] == [
        "torch.distributed", "torch.distributed", "yaml", "PIL", "xformers", "torch.distributed",
    ]  # fmt: skip
    kept = passing_the_doors(path, "genrl_core/loop/distributed.py")
    assert {line.rpartition(": ")[2] for line in kept} == {"yaml", "PIL", "xformers"}
    assert "PIL" not in str(passing_the_doors(path, "plugins/genrl_x/x.py"))


def test_public_names_exist_and_agree() -> None:
    assert sorted(genrl_core.__all__) == sorted({"__version__", *genrl_core._HOMES})
    for name in genrl_core.__all__:
        assert getattr(genrl_core, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = genrl_core.nothing_here


def test_recipes_and_entry_modules_load_no_torch() -> None:
    """The package, what configs and objectives are made of, and all that reads recipes."""
    recipe = sorted((ROOT / "genrl_core" / "recipe").rglob("*.py"))
    modules = [
        "genrl_core", *(f"genrl_core.interfaces.{name}" for name in WITHOUT_TORCH),
        *(f"genrl_core.recipe.{path.stem}" for path in recipe if path.stem != "__init__"),
    ]  # fmt: skip
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} loads torch")
import genrl_core
genrl_core.PolicyConfig
sys.exit("genrl_core.PolicyConfig loads torch" if "torch" in sys.modules else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
