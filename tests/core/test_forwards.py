"""What a forward takes is decided by one function, and by named parameters alone."""

import ast
from pathlib import Path

import pytest

import genrl_models
from genrl_core import GenRLError

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "genrl_core").glob("**/*.py"), *(ROOT / "plugins").glob("**/*.py")])

ALLOWED = {
    "plugins/genrl_models/forwards.py": "the one place that asks what a forward takes",
    "genrl_core/registration.py": "refuses functions that cannot be called; filters nothing",
}
READS_PARAMETERS = {
    "signature", "getfullargspec", "getargspec", "getcallargs", "co_varnames", "co_argcount",
    "__signature__",
}  # fmt: skip


def readers_of_parameters(path: Path) -> list[str]:
    """Where a module looks at the parameters of a function."""
    nodes = ast.walk(ast.parse(path.read_text()))
    found = [
        (node.lineno, name)
        for node in nodes
        for name in (
            [node.attr] if isinstance(node, ast.Attribute)
            else [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom)
            else []
        )
    ]  # fmt: skip
    return [f"{path.name}:{line}: {name}" for line, name in found if name in READS_PARAMETERS]


def test_no_arguments_are_filtered_by_signature_elsewhere() -> None:
    found = {str(path.relative_to(ROOT)): readers_of_parameters(path) for path in SOURCES}
    assert {name: where for name, where in found.items() if where and name not in ALLOWED} == {}
    assert all(found[name] for name in ALLOWED), "an exception that nothing needs any more"


def test_the_search_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("import inspect\nfrom inspect import signature\ninspect.signature(f)\n")
    assert readers_of_parameters(path) == ["x.py:2: signature", "x.py:3: signature"]


def test_a_cache_has_the_name_that_the_forward_gives_it() -> None:
    def today(input_ids, cache=None, **kwargs): ...
    def before(input_ids, past_key_values=None, **kwargs): ...
    def states(input_ids, cache_params=None, use_cache=None): ...

    for forward, name in ((today, "cache"), (before, "past_key_values"), (states, "cache_params")):
        found = genrl_models.forward_arguments(forward, ("input_ids", "cache"), ("use_cache",))
        assert found["input_ids"] == "input_ids" and found["cache"] == name
        assert ("use_cache" in found) == (forward is states)


def test_keywords_of_any_name_are_no_acceptance() -> None:
    def forward(input_ids, **kwargs): ...

    with pytest.raises(GenRLError, match="forward takes no argument cache or past_key_values"):
        genrl_models.forward_arguments(forward, ("input_ids", "cache"))
    assert genrl_models.forward_arguments(forward, (), ("cache",)) == {}
