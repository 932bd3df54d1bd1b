"""Public names of a package that load their modules on first use."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """What a package's ``__getattr__`` is, so that reading recipes loads no torch.

        __getattr__ = lazy_names(__name__, {"MyPolicy": "policy", "tables": ""})

    Args:
        package: its ``__name__``.
        homes: name -> the module inside the package that has it; empty for the module itself.

    Raises:
        AttributeError: from the function returned, for a name that is not in ``homes``.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return load
