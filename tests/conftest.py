"""What every test may rely on, what a test may be skipped for, and where the seconds go."""

import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER:  # two processes on two cores; torch, which no plugin has loaded yet, reads this
    os.environ.setdefault("OMP_NUM_THREADS", "1")

MAY_BE_MISSING = re.compile(r"\b(GPU|network|Debian package|root)\b")
"""Reasons to skip: a machine without the first two is served too, .ci/run installs the third where
it can, and what only root may do has a stand-in that everybody runs.
"""
SECONDS: Counter[str] = Counter()
CASES: Counter[str] = Counter()
"""By folder: how long its tests took, with fixtures and in all processes, and how many they are."""


@pytest.fixture(scope="session", autouse=True)
def base_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pre-trained bases, trained by this session's code and never by an older.

    They are kept for the session, for all its processes, or in ``GENRL_CACHE`` where it is set.
    """
    before = os.environ.get("GENRL_CACHE")
    session = tmp_path_factory.getbasetemp()
    folder = Path(before) if before else (session.parent if WORKER else session) / "bases"
    os.environ["GENRL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["GENRL_CACHE"]


# --- a test that does not run proves nothing ---


def no_excuse(report: pytest.TestReport | pytest.CollectReport, item: pytest.Item | None) -> str:
    """Why a skipped test counts as failed; empty where it does not."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return ""
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    marked = item is not None and any(item.get_closest_marker(name) for name in ("gpu", "network"))
    if marked or MAY_BE_MISSING.search(said):
        return ""
    return (
        f"{said}\nA test may be skipped for want of a GPU, of the network, of a Debian package or "
        "of root's rights, named in the reason. All else is installed by `pip install -e '.[dev]'`."
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport]:
    report = yield
    if why := no_excuse(report, item):
        report.outcome, report.longrepr = "failed", why
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport]:
    report = yield
    if why := no_excuse(report, None):
        report.outcome, report.longrepr = "failed", why
    return report


# --- where the time goes ---


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    folder = str(PurePosixPath(report.nodeid.partition("::")[0]).parent)
    SECONDS[folder] += report.duration
    CASES[folder] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not SECONDS:
        return
    terminalreporter.section("seconds per folder, of all processes")
    for folder, seconds in sorted(SECONDS.items()):
        terminalreporter.write_line(f"{seconds:7.1f} s  {CASES[folder]:5} cases  {folder}")
    terminalreporter.write_line(f"{SECONDS.total():7.1f} s  {CASES.total():5} cases")
