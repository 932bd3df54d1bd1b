"""What every test may rely on: bases that are trained by this session's code, never by an older."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def base_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pre-trained bases are kept for the session, or in ``GENRL_CACHE`` where it is set."""
    before = os.environ.get("GENRL_CACHE")
    folder = Path(before) if before else tmp_path_factory.getbasetemp() / "bases"
    os.environ["GENRL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["GENRL_CACHE"]
