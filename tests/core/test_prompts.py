"""Prompt files: what is read, and what every kind of broken file says."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genrl_core import Prompt
from genrl_core.errors import RecipeError
from genrl_core.recipe.prompts import load_prompts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_file_skips_blank_lines_bom_and_crlf(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfa cat\r\n\r\n a dog, brown \r\n")
    assert [p.text for p in load_prompts(path)] == ["a cat", "a dog, brown"]


def test_default_ids_depend_on_the_text_alone_and_stay_unique(tmp_path: Path) -> None:
    first = load_prompts(write(tmp_path, "a.txt", "a cat\na dog\na cat\n"))
    second = load_prompts(write(tmp_path, "b.txt", "a dog\na cat\n"))
    assert first[0].id == second[1].id
    assert first[1].id == second[0].id
    assert first[2].id == f"{first[0].id}-2"


def test_json_lines_and_csv_keep_further_columns(tmp_path: Path) -> None:
    jsonl = '{"id": 7, "text": "a cat", "negative": "a dog", "count": 3}\n{"text": "x"}\n'
    first, second = load_prompts(write(tmp_path, "a.jsonl", jsonl))
    assert first == Prompt("7", "a cat", "a dog", {"count": 3})
    assert second.negative == ""
    table = 'text,id,count\n"a cat, ""red""",k,3\nx,,\n'
    first, second = load_prompts(write(tmp_path, "a.csv", table))
    assert first == Prompt("k", 'a cat, "red"', "", {"count": "3"})
    assert second.columns == {"count": ""}, "a cell is empty, its column is there"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "a.txt: the prompt file holds no prompt"),
        ("a.csv", "", "holds no prompt"),
        ("a.txt", b"ok\nb\xff\n", "a.txt:2: not UTF-8"),
        ("a.txt", b"ok\n\x00\n", "a.txt:2: holds a NUL"),
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "a.jsonl:1: not valid JSON: a key stands twice"),
        ("a.jsonl", '{"text": "a", "x": NaN}', "a.jsonl:1: not valid JSON: NaN"),
        ("a.jsonl", '"a"', "a.jsonl:1: should be an object"),
        ("a.jsonl", r'{"text": "a \ud800"}', r"a.jsonl:1: holds half of a surrogate pair (\ud800"),
        ("a.jsonl", r'{"text": "a", "x": ["\udfff"]}', "a.jsonl:1: holds half of a surrogate pair"),
        ("a.jsonl", '{"id": "1"}', "a.jsonl:1: text: is missing"),
        ("a.jsonl", '{"text": 3}', "a.jsonl:1: text: should be text"),
        ("a.jsonl", '{"text": "a", "id": true}', "a.jsonl:1: id: should be text"),
        ("a.jsonl", '{"text": "a", "negative": 1}', "a.jsonl:1: negative: should be text"),
        ("a.jsonl", '{"text":"a","id":"1"}\n{"text":"b","id":"1"}', "a.jsonl:2: the id '1' stands"),
        ("a.csv", "prompt\na\n", "a.csv:1: no column `text`"),
        ("a.csv", "text,x\na,1,2\n", "a.csv:2: should have the header's 2 columns"),
        ("a.csv", "text,x\na\n", "a.csv:2: should have the header's 2 columns"),
        ("a.csv", 'text\n"a\n', "not valid CSV"),
        ("a.csv", "text,x,text\na,1,b\n", "a.csv:1: the header names text more than once"),
        ("a.md", "a", "end in .txt, .jsonl or .csv"),
    ],
)
def test_broken_files_are_named_with_their_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_prompts(write(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.txt: the prompt file cannot be read: No such"):
        load_prompts(tmp_path / "none.txt")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": 1}\nx\n{"text": "a"}\n[]\n')
    with pytest.raises(RecipeError) as error:
        load_prompts(path)
    places = {line.split(": ")[0].rpartition(":")[2] for line in str(error.value).splitlines()}
    assert places == {"1", "2", "4"}


def test_reading_prompts_imports_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "a cat\n")
    code = (
        "import sys; from genrl_core.recipe.prompts import load_prompts;"
        f"load_prompts({str(path)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_both_halves_of_a_pair_are_a_character(tmp_path: Path) -> None:
    (prompt,) = load_prompts(write(tmp_path, "a.jsonl", r'{"text": "a \ud83d\udc08"}'))
    assert prompt.text == "a \N{CAT}"


ENDS = ["A: ", " indented", "\tfew\nshots\n\n", "A:", "A: \u00a0"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_white_space_at_the_ends_of_a_value_is_part_of_it(tmp_path: Path, kind: str) -> None:
    """As json and csv write it, so they are read: other tokens, other prompts, other ids."""
    path = tmp_path / f"a.{kind}"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [{"text": text, "negative": text, "x": text} for text in ENDS]
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, ["text", "negative", "x"])
            writer.writeheader()
            writer.writerows(rows)
    found = load_prompts(path)
    assert [prompt.text for prompt in found] == ENDS
    assert [prompt.negative for prompt in found] == ENDS
    assert [prompt.columns["x"] for prompt in found] == ENDS
    assert len({prompt.id for prompt in found}) == len(ENDS)


def test_empty_cells_keep_their_column_and_null_is_no_text(tmp_path: Path) -> None:
    table = write(tmp_path, "a.csv", "text,id,negative,x,\na,,,,\nb,k, ,0,\n")
    first, second = load_prompts(table)
    assert (first.negative, first.columns) == ("", {"x": ""})
    assert second == Prompt("k", "b", " ", {"x": "0"})
    rows = '{"text": "a", "id": null, "negative": null, "x": null}\n{"text": "a"}\n'
    try:
        first, second = load_prompts(write(tmp_path, "a.jsonl", rows))
    except RecipeError as error:
        pytest.fail(f"null is not taken for an absent value: {error}")
    assert first == Prompt(second.id[:12], "a", "", {"x": None})
    for name, content in {"b.jsonl": '{"text": " \\n"}\n', "b.csv": 'text,x\n" ",1\n'}.items():
        with pytest.raises(RecipeError, match=f"{name}:.: text: is missing or empty"):
            load_prompts(write(tmp_path, name, content))


def test_equal_lines_are_numbered_in_linear_time(tmp_path: Path) -> None:
    """A fraction of a second; trying every number that is taken for every line takes a minute."""

    def late(*_: object) -> None:
        raise AssertionError("20,000 equal lines take longer than 10 seconds")

    path = tmp_path / "equal.txt"
    path.write_text("the same\n" * 20_000)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        names = [prompt.id for prompt in load_prompts(path)]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert names == [names[0], *(f"{names[0]}-{number}" for number in range(2, 20_001))]
