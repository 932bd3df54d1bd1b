"""What is too long for the gate: run by name, and kept with the code that it speaks of.

    python tests/long.py NAME [NAME ...]    run these, and write tests/results/NAME.json for each
    python tests/long.py --stale            say which results are older than their code
    python tests/long.py                    list the names

A result holds the commit, the date, the versions, and the sha256 of every file that it depends on,
taken before the run. What fails leaves the earlier result alone and ends with exit code 1.
"""

import argparse
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "results"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "numpy", "pydantic", "pytest")
CODE = ("genrl_core/**/*.py", "plugins/**/*.py", "pyproject.toml", "tests/conftest.py")
PYTEST = ("-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-m", "")
"""All tests of what is named, those of the gate and those marked ``long``."""


@dataclass(frozen=True)
class Long:
    """A program outside the gate.

    Attributes:
        what: what its result says, in a line.
        command: what Python is called with.
        files: patterns of the files that the result depends on.
    """

    what: str
    command: tuple[str, ...]
    files: tuple[str, ...]


PROGRAMS = {
    "matrix": Long(
        "every policy, sampler, objective and view that may meet train together",
        (*PYTEST, "tests/matrix/test_matrix.py"),
        (*CODE, "tests/matrix/*.py", "tests/support/*.py"),
    ),
    "mutations": Long(
        "every bug of the list makes its test fail",
        ("tests/mutations.py",),
        (*CODE, "recipes/**/*", "tests/mutations.py", "tests/core/**/*.py", "tests/plugins/**/*.py",
         "tests/support/*.py", "tests/recipes/*.py"),
    ),
    "recipes": Long(
        "every recipe trains, and the tables of recipes/README.md come out again",
        (*PYTEST, "tests/recipes"),
        (*CODE, "recipes/**/*", "tests/recipes/*.py", "tests/benchmarks/*", "README.md"),
    ),
}  # fmt: skip


def hashes(patterns: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Path -> sha256 of every file that a pattern names."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(found)
        if "__pycache__" not in path.parts
    }


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


def run(name: str) -> str:
    """Run a program and write its result; the reason where there is none."""
    program, start = PROGRAMS[name], time.perf_counter()
    before = hashes(program.files)
    commit = git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    with subprocess.Popen(
        [sys.executable, *program.command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        last = ""
        for line in child.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if child.returncode:
        return f"failed with {child.returncode}: {last}"
    if hashes(program.files) != before:
        return "files that it depends on were changed while it ran"
    result = {
        "name": name, "what": program.what, "said": last, "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start), "versions": versions(), "files": before,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return ""


def age(result: Mapping[str, Any] | None, files: Mapping[str, str]) -> str:
    """How a result stands to the files that are there now; empty where they are the same."""
    if result is None:
        return "never run"
    known = result["files"]
    changed = sorted(path for path in {*known, *files} if known.get(path) != files.get(path))
    if not changed:
        return ""
    more = ", ..." if len(changed) > 3 else ""
    return (
        f"older than its code: {len(changed)} of {len(files)} files differ from {result['commit']} "
        f"of {result['date'][:10]} ({', '.join(changed[:3])}{more})"
    )


def stale() -> None:
    for name, program in PROGRAMS.items():
        path = RESULTS / f"{name}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        print(f"{name}: {age(result, hashes(program.files)) or 'of this code'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(PROGRAMS))
    parser.add_argument("--stale", action="store_true", help="which results are older than code")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in PROGRAMS]:
        parser.error(f"no program is called {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    if asked.stale:
        stale()
    elif not asked.names:
        for name, program in PROGRAMS.items():
            print(f"{name:10} {program.what}")
    failed = {name: why for name in asked.names if (why := run(name))}
    for name, why in failed.items():
        print(f"{name}: no result: {why}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
