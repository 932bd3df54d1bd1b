"""docs/*.md are true: their code runs and prints what they show, and what they name is there."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import genrl_core
from genrl_core import RecipeError, load_recipe

from .pages import Stage, blocks_of, same, two_iterations

ROOT = Path(__file__).parents[2]
CORE = ROOT / "genrl_core"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
READING, GLOSSARY = DOCS / "reading-the-core.md", DOCS / "glossary.md"
NUMBERS = {"reward", "loss", "grad_norm", "drift", "seconds"}
"""Metrics that every run of a page logs."""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    opened = Stage.open(tmp_path, monkeypatch)
    yield opened
    opened.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_is_and_its_recipes_train(page: Path, stage: Stage) -> None:
    stage.play(page)
    for recipe in stage.recipes(page):
        for metrics in two_iterations(recipe):
            assert metrics.keys() >= NUMBERS
            assert all(math.isfinite(value) for value in metrics.values())
            assert metrics["drift"] < 1e-5
            assert metrics["grad_norm"] > 0


def test_there_are_six_pages_and_each_says_first_what_it_is_for() -> None:
    assert {page.stem for page in PAGES} == {
        "reading-the-core", "how-it-works", "writing-a-sampler", "writing-a-paradigm",
        "writing-an-objective", "glossary",
    }  # fmt: skip
    for page in PAGES:
        assert page.read_text().split("\n\n")[1].startswith("At the end of this page you can "), (
            page
        )


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    found = 0
    for page in (*PAGES, ROOT / "plugins" / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in slugs(path), f"{page.name}: {target}"
            found += 1
    assert found > 15


def test_every_page_is_linked_from_where_plugins_begin() -> None:
    readme = (ROOT / "plugins" / "README.md").read_text()
    assert all(f"(../docs/{page.name})" in readme for page in PAGES)


# --- the pages' own examples ---


def test_the_example_paradigm_is_short() -> None:
    (file,) = (b for b in blocks_of(DOCS / "writing-a-paradigm.md") if b.file == "bits.py")
    assert len([line for line in file.text.splitlines() if line.strip()]) <= 125


def test_the_example_sampler_is_short() -> None:
    text = (DOCS / "writing-a-sampler.md").read_text()
    start = text.index("class CoinSampler(MarkovSampler")
    sampler = text[start : text.index("```", start)].splitlines()
    assert len(sampler) <= 40


def test_examples_use_public_names_alone() -> None:
    """From ``genrl_core``, its public modules, and other examples and objectives."""
    modules = {"genrl_core", "genrl_core.functional", "genrl_core.testing", "genrl_core.runs"}
    for page in PAGES:
        for block in blocks_of(page):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "genrl_core"
                ):
                    assert node.module in modules, f"{page.name}:{block.line}: {node.module}"
                    if node.module == "genrl_core":
                        assert {a.name for a in node.names} <= set(genrl_core.__all__)


# --- reading the core ---

ROW = re.compile(r"^\| (\d+) \| `([\w./]+)` \| (.*?) \| (\d+) \|", re.MULTILINE)


def lines_of(path: Path, part: str) -> int:
    """The lines of a file (``all``), of its docstring (``head``), a class, function or method."""
    text = path.read_text()
    tree: ast.AST = ast.parse(text)
    if part == "all":
        return len(text.splitlines())
    if part == "head":
        (first, *_) = ast.parse(text).body
        return first.end_lineno or 0
    for name in part.split("."):
        named = {n.name: n for n in ast.iter_child_nodes(tree) if isinstance(n, NAMED)}
        assert name in named, f"{path} has no {part}"
        tree = named[name]
    assert isinstance(tree, NAMED)
    first_line = min([tree.lineno, *(mark.lineno for mark in tree.decorator_list)])
    return (tree.end_lineno or 0) - first_line + 1


NAMED = (ast.ClassDef, ast.FunctionDef)


def path_of_the_core() -> list[tuple[str, list[str], int]]:
    """(file, parts, lines as stated) of every row."""
    rows = ROW.findall(READING.read_text())
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    return [(file, parts.replace("`", "").split(", "), int(n)) for _, file, parts, n in rows]


def test_the_core_is_read_in_an_hour() -> None:
    rows = path_of_the_core()
    counted = {file: sum(lines_of(CORE / file, p) for p in parts) for file, parts, _ in rows}
    wrong = [
        f"{file}: {counted[file]} lines, and the page says {stated}"
        for file, _, stated in rows
        if abs(counted[file] - stated) > 0.15 * stated + 2
    ]
    assert not wrong, "\n" + "\n".join(wrong)
    total = sum(counted.values())
    (stated,) = re.findall(r"about ([\d,]+) lines", READING.read_text())
    assert total <= 1500
    assert abs(total - int(stated.replace(",", ""))) <= 0.15 * total
    assert len(READING.read_text().splitlines()) <= 90


def test_every_file_that_the_pages_name_is_there() -> None:
    text = READING.read_text()
    named = set(re.findall(r"`([\w/]+\.py)`|(loop/\w+\.py)", text))
    assert len(named) > 30
    for pair in named:
        assert (CORE / "".join(pair)).is_file(), pair
    moved = GLOSSARY.read_text().partition("## 4.")[2]
    for row in re.findall(r"^\| `.*? \| (.*?) \|$", moved, re.MULTILINE):
        for name in re.findall(r"`([\w/.]+)`", row):
            assert (CORE / name).exists() or (ROOT / name).exists(), name


def test_every_file_of_interfaces_and_loop_is_on_the_page() -> None:
    text = READING.read_text()
    for folder in ("interfaces", "loop"):
        for path in sorted((CORE / folder).rglob("*.py")):
            name = path.relative_to(CORE).as_posix()
            named = name in text or path.name in ("__init__.py", "reward_values.py")
            assert named, f"{name} is neither on the path nor a branch of it"


# --- the glossary ---


def rows_of(section: str) -> list[tuple[str, str]]:
    """The first and the last column of a table of the glossary."""
    text = GLOSSARY.read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(row[0], row[-1]) for row in cells[1:]]


KEYS = [pair for pair in rows_of("2.") if pair[0].startswith("`")]


@pytest.mark.parametrize(("before", "now"), KEYS, ids=lambda key: key.strip("`"))
def test_an_old_key_is_refused_with_its_new_name(before: str, now: str) -> None:
    section, _, old = before.strip("`").partition(".")
    new = now.strip("`").partition(".")[2]
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits/masked", [f"{section}.{old}=1"])
    assert f"`{new}`" in str(caught.value)
    assert f"{section}.{old}" in str(caught.value)


def test_new_names_are_in_the_code_and_old_ones_are_no_longer_public() -> None:
    code = "\n".join(path.read_text() for path in sorted(CORE.rglob("*.py")))
    rows = rows_of("3.")
    assert len(rows) > 25
    for before, now in rows:
        for name in re.findall(r"`([A-Za-z_.]+)(?:\(.*?\))?`", now):
            if not name.startswith("genrl"):
                assert re.search(rf"\b{name.split('.')[-1]}\b", code), name
        if "the same of" in now or before.startswith("`View`"):
            continue
        for name in re.findall(r"`([A-Z]\w+)`", before):
            assert not hasattr(genrl_core, name), name


def test_the_words_are_about_thirty() -> None:
    assert 25 <= len(rows_of("1.")) <= 40


# --- the tests themselves ---


def test_a_page_that_is_not_true_is_noticed(tmp_path: Path, stage: Stage) -> None:
    page = tmp_path / "page.md"
    shown = "```python\n# file: a.py\nX = 3\n```\n```python\nfrom a import X\nprint(X)\n```\n"
    for output, problem in (("3", ""), ("4", "it printed\n3"), ("...", "")):
        page.write_text(f"{shown}\n```text\n{output}\n```\n")
        if problem:
            with pytest.raises(AssertionError, match=problem):
                stage.play(page)
        else:
            stage.play(page)
    page.write_text("```console\ngenrl show no_such_thing\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:2: genrl show no_such_thing"):
        stage.play(page)
    page.write_text("```console\ngenrl show no_such_thing # exit code 2\n```\n")
    stage.play(page)
    page.write_text("```console\nrm -r x\n```\n")
    with pytest.raises(AssertionError, match="only genrl's commands"):
        stage.play(page)


def test_rounding_is_no_difference_and_a_number_is() -> None:
    assert same("drift 0.0", "drift 3.1e-08")
    assert not same("drift 0.0", "drift 3.1e-06")
    assert not same("0.5", "0.6")


def test_lines_are_counted_with_decorators_and_docstrings(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        '"""Head.\n\nMore.\n"""\n\n@mark\nclass A:\n    def f(self):\n        """One."""\n'
    )
    counted = [lines_of(path, part) for part in ("all", "head", "A", "A.f")]
    assert counted == [9, 4, 4, 2]
