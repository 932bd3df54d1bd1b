"""What GenRL admits is what was tried: ranges have ends, and the pins of CI lie inside them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = [Requirement(line) for line in (*PROJECT["dependencies"], *EXTRAS["dev"])]
MOVING = ("torch", "transformers", "diffusers", "accelerate", "peft", "huggingface_hub")
"""What renames arguments in minor versions."""


def pins() -> dict[str, Version]:
    path = ROOT / "constraints.txt"
    assert path.is_file(), "there is no constraints.txt"
    found = re.findall(r"^([\w.-]+)==([\w.]+)$", path.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in found}


@pytest.mark.parametrize("requirement", OWN, ids=lambda each: each.name)
def test_ci_pins_every_dependency_inside_its_range(requirement: Requirement) -> None:
    pinned = pins()[requirement.name.lower().replace("_", "-")]
    assert pinned in requirement.specifier


@pytest.mark.parametrize("requirement", OWN, ids=lambda each: each.name)
def test_every_range_has_both_ends(requirement: Requirement) -> None:
    kinds = {each.operator for each in requirement.specifier}
    assert kinds in ({">=", "<"}, {"=="})


@pytest.mark.parametrize("name", MOVING)
def test_ranges_end_at_the_minor_version_that_was_tested(name: str) -> None:
    """transformers 5.24 renamed an argument, and a range to 6 admitted it."""
    specifier = next(each.specifier for each in OWN if each.name == name)
    pinned = pins()[name.replace("_", "-")]
    assert Version(f"{pinned.major}.{pinned.minor + 1}") not in specifier


@pytest.mark.parametrize("command", ["quick-start", "tests"])
def test_readme_installs_what_ci_pins(command: str) -> None:
    shown = re.search(
        rf"<!-- command: {command} -->\n```bash\n(.+)\n```", ROOT.joinpath("README.md").read_text()
    )
    assert shown is not None
    assert "pip install -c constraints.txt -e " in shown[1]
