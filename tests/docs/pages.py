"""Plays a page of documentation: its code blocks in order, in one folder and one namespace.

A block whose first line is ``# file: NAME`` writes that file, with ``, continued`` behind the name
it is put at the file's end. Other Python is executed, and of a ``console`` block every command. A
``text`` block holds what the block before it prints, ``...`` standing for anything. A fence without
a language is a drawing. ``<!-- with the files of PAGE -->`` writes the files of another page first.
"""

import doctest
import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genrl_core import Recipe, build_trainer, load_recipe
from genrl_core.cli.app import main
from genrl_core.registry import Registry

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+?)(, continued)?\n")
OTHER = re.compile(r"^<!-- with the files of (\S+) -->$", re.MULTILINE)
ROUNDING = re.compile(r"\b\d+(\.\d+)?e-(0?[7-9]|[1-9]\d)\b")
"""Numbers below 1e-6: 0 on one processor, and not on another."""
CODE = re.compile(r" +# exit code (\d+)$")


@dataclass(frozen=True)
class Block:
    """One fenced block and the line of the page that it begins at."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The file that it writes, or nothing."""
        found = FILE.match(self.text)
        return found[1] if found else ""


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(text)]


def write(block: Block, folder: Path) -> None:
    found = FILE.match(block.text)
    assert found is not None
    path = folder / found[1]
    if found[2]:
        path.write_text(path.read_text() + "\n\n" + block.text[found.end() :])
    else:
        # The first line of prompts would be a prompt.
        path.write_text(block.text[found.end() if path.suffix == ".txt" else 0 :])


@dataclass(frozen=True)
class Stage:
    """Where pages are played: an empty folder that Python imports from."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "Stage":
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        return cls(folder)

    def close(self) -> None:
        """Forget the modules that were imported from the folder."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(self.folder)):
                del sys.modules[name]

    def play(self, page: Path) -> None:
        """Run a page, and compare what it shows with what is printed."""
        for other in OTHER.findall(page.read_text()):
            for block in blocks_of(page.parent / other):
                if block.file:
                    write(block, self.folder)
        printed: str | None = None
        space: dict[str, Any] = {"__name__": page.stem}
        for block in blocks_of(page):
            where = f"{page.name}:{block.line}"
            if block.language == "text" and not block.file:
                assert printed is not None, f"{where}: nothing was run that could print this"
                assert same(block.text, printed), f"{where}: it printed\n{printed}"
                printed = None
                continue
            printed = None
            if block.file:
                write(block, self.folder)
            elif block.language == "python":
                # The page's own line numbers, in tracebacks.
                code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
                printed = output_of(lambda code=code: exec(code, space))
            elif block.language == "console":
                printed = output_of(lambda block=block, where=where: commands(block.text, where))
            else:
                assert not block.language, f"{where}: what is a block of {block.language}?"

    def recipes(self, page: Path) -> Iterator[Recipe]:
        """The recipes that a page wrote, short."""
        plugins = [p for p in sorted(self.folder.glob("*.py")) if "@hookimpl" in p.read_text()]
        names = [block.file for block in blocks_of(page) if block.language == "yaml"]
        registry = Registry.discover(files=plugins) if names else None
        for name in names:
            yield load_recipe(self.folder / name, ["train.iterations=2"], registry)


def two_iterations(recipe: Recipe) -> list[dict[str, float]]:
    """The metrics of a short run."""
    trainer = build_trainer(recipe)
    return [trainer.step().metrics for _ in range(2)]


def output_of(run: Any) -> str:
    """What a call prints, errors too."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        run()
    return out.getvalue()


def commands(text: str, where: str) -> None:
    """Run the commands of a block, in this process."""
    for line in text.splitlines():
        if line == "export PYTHONPATH=.":  # as the stage has it
            continue
        code = CODE.search(line)
        program, *arguments = shlex.split(CODE.sub("", line))
        assert program == "genrl", f"{where}: only genrl's commands are run, not {line}"
        assert main(arguments) == (int(code[1]) if code else 0), f"{where}: {line}"


def same(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed; blanks, line breaks and rounding do not count."""
    how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    exact = ROUNDING.sub("0.0", printed)
    return doctest.OutputChecker().check_output(shown, exact, how)
