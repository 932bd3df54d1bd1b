"""The programs of tests/ as modules, for the tests of these programs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    """``tests/NAME.py``, loaded anew under a name that no package has."""
    spec = importlib.util.spec_from_file_location(f"program_{name}", TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
