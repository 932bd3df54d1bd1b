"""Run the suite against other versions of what GenRL depends on, each in a fresh environment.

    python tests/newest.py [inside] [outside] [lowest] [--force NAME==VERSION] [-- PYTEST ...]

``inside`` takes the newest versions that pyproject.toml admits, ``outside`` the newest there are,
``lowest`` the lower end of every range; inside and outside without a name. Of torch, inside and
outside take the pin of constraints.txt, unless ``--with-torch`` is given: a newer one brings
gigabytes of CUDA packages (the lower end does so too). Without ``-- PYTEST ...`` the whole suite
runs; what stands there (``tests/core -n 2``) goes to pytest.

For every environment it prints the versions that differ from constraints.txt and which tests broke,
by their error. Exit code 1 if something broke inside the ranges or at their lower end. What breaks
outside tells what to cure before the ranges are moved. ``--write-constraints`` writes the versions
of the newest environment whose suite passed as the new constraints.txt.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
KINDS = ("inside", "outside", "lowest")
HEADER = """\
# The versions that CI runs: pip install -c constraints.txt -e '.[dev]'. Written by
# `python tests/newest.py --write-constraints`; what GenRL admits stands in pyproject.toml.
"""


def requirements() -> list[Requirement]:
    """What GenRL itself asks for, its tests included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    """The versions in constraints.txt, by normalised name."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def lower_end(requirement: Requirement) -> str:
    """The lowest version that a requirement admits."""
    ends = {s.version for s in requirement.specifier if s.operator in (">=", "==")}
    if len(ends) != 1:
        raise SystemExit(f"pyproject.toml: {requirement} has no lower end")
    return ends.pop()


class Environment:
    """A virtual environment with GenRL in it, editable."""

    def __init__(self, kind: str, folder: Path, force: Sequence[str], with_torch: bool):
        self.kind, self.folder = kind, folder / kind
        run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        torch = [] if with_torch else [f"torch=={pins()['torch']}"]
        if kind == "lowest":
            limits = folder / "lowest.txt"
            limits.write_text("".join(f"{r.name}=={lower_end(r)}\n" for r in requirements()))
            self.pip("-c", str(limits), "-e", f"{ROOT}[dev]")
        else:
            self.pip(*torch, "-e", f"{ROOT}[dev]")
        if kind == "outside":
            others = [r.name for r in requirements() if r.name != "torch"]
            self.pip("--upgrade", *(torch or ["torch"]), *others)
        if force:
            self.pip(*force)

    def pip(self, *arguments: str) -> None:
        run([str(self.folder / "bin/python"), "-m", "pip", "install", "--quiet", *arguments])

    def versions(self) -> dict[str, str]:
        listed = subprocess.run(
            [self.folder / "bin/python", "-m", "pip", "list", "--format=json"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        found = {canonicalize_name(i["name"]): i["version"] for i in json.loads(listed.stdout)}
        local = ("genrl-core", "pip", "setuptools")
        return {n: v.partition("+")[0] for n, v in found.items() if n not in local}

    def suite(self, arguments: Sequence[str]) -> tuple[int, dict[str, list[str]]]:
        """How many tests ran, and error -> the tests that it broke."""
        report = self.folder / "report.xml"
        cache = {"GENRL_CACHE": str(self.folder / "bases")}
        command = [str(self.folder / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [*command, f"--junitxml={report}", *arguments], cwd=ROOT, env=os.environ | cache,
            check=False,
        )  # fmt: skip
        if not report.exists():
            return 0, {f"pytest ended with {done.returncode} and no report": []}
        cases = list(ET.parse(report).iter("testcase"))
        broken: dict[str, list[str]] = defaultdict(list)
        for case in cases:
            for problem in (*case.iter("failure"), *case.iter("error")):
                error = (problem.get("message") or "").strip().splitlines() or ["no message"]
                broken[error[0][:160]].append(f"{case.get('classname')}::{case.get('name')}")
        if not cases or done.returncode not in (0, 1):
            broken[f"pytest ended with {done.returncode} after {len(cases)} tests"] = []
        return len(cases), dict(broken)


def run(command: Sequence[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"this failed: {' '.join(command)}")


def say(environment: Environment, count: int, broken: dict[str, list[str]]) -> None:
    pinned, found = pins(), environment.versions()
    other = [f"{n} {v} (pinned: {pinned.get(n, 'not')})" for n, v in found.items()
             if pinned.get(n) != v]  # fmt: skip
    print(f"\n== {environment.kind}: {count} tests, {sum(map(len, broken.values()))} broken")
    print(f"   other than pinned: {', '.join(sorted(other)) or 'nothing'}")
    for error, names in sorted(broken.items(), key=lambda item: -len(item[1])):
        print(f"   {len(names):4}  {error}")
        print("".join(f"           {name}\n" for name in names[:5]), end="")
        print(f"           and {len(names) - 5} more\n" if len(names) > 5 else "", end="")


def write_constraints(versions: Iterable[tuple[str, str]]) -> None:
    CONSTRAINTS.write_text(HEADER + "".join(f"{n}=={v}\n" for n, v in sorted(versions)))


def main(arguments: Sequence[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description="The suite against other versions.")
    parser.add_argument("kinds", nargs="*", choices=(*KINDS, []), metavar="|".join(KINDS))
    parser.add_argument("--force", action="append", default=[], metavar="NAME==VERSION")
    parser.add_argument("--with-torch", action="store_true", help="take another torch as well")
    parser.add_argument("--folder", type=Path, help="keep the environments here")
    parser.add_argument("--write-constraints", action="store_true")
    given = parser.parse_args(arguments[:split])
    bad = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for kind in given.kinds or KINDS[:2]:
            environment = Environment(kind, folder, given.force, given.with_torch)
            count, broken = environment.suite(arguments[split + 1 :])
            say(environment, count, broken)
            bad |= bool(broken) and kind != "outside"
            if given.write_constraints and not broken and kind != "lowest":
                write_constraints(environment.versions().items())
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
