"""GenEval's rules (arXiv 2310.11513): from detected objects to a verdict. No network, no torch.

A prompt's columns are those of GenEval's JSON lines::

    {"tag": "position", "include": [{"class": "bench", "count": 1},
     {"class": "cat", "count": 1, "position": ["left of", 0]}], "exclude": []}

``include`` is joined by "and"; ``position`` names a relation to the objects of an earlier clause.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from genrl_core import Prompt, RewardError
from genrl_rewards.coco import CLASSES, COLOURS, RELATIONS, TAGS

CONFIDENCE = 0.3
COUNTING_CONFIDENCE = 0.9
"""Confidence, 0 to 1, above which an object counts; counting asks for surer ones."""
MAX_OBJECTS = 16
"""Objects kept of a class, the surest ones."""
SLACK = 0.1
"""Share of two objects' summed sizes by which their centres may be apart without a relation."""
DIRECTION = 0.5
"""Part of the distance between the centres above which the rest of an offset is a relation."""


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        name: its class, one of ``CLASSES``.
        score: confidence, 0 to 1.
        box: left, top, right, bottom in pixels, the last two exclusive.
        mask: ``[H, W]`` bool, True on the object; only colours look at it.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[Any] | None = field(default=None, compare=False, repr=False)


Objects = Sequence[Detection]
Colours = Callable[[Objects], Sequence[str]]
"""The colour of each of some objects of one class; asked only where a verdict depends on it."""


@dataclass(frozen=True)
class Clause:
    """``count`` objects of a class, in a colour, in a relation to those of clause ``target``."""

    name: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: every clause of ``include`` and none of ``exclude``."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()


def request_of(prompt: Prompt) -> Request:
    """The request in a prompt's columns.

    Raises:
        RewardError: a column is missing or holds something else than GenEval's.
    """
    tag = prompt.columns.get("tag")
    if tag not in TAGS:
        raise _refusal(prompt, f"its column `tag` is {tag!r}; expected one of {', '.join(TAGS)}")
    include = _clauses(prompt, "include")
    if not include:
        raise _refusal(prompt, "its column `include` asks for nothing; expected a list of objects")
    return Request(tag, include, _clauses(prompt, "exclude"))


def kept(detections: Objects, tag: str) -> dict[str, list[Detection]]:
    """The objects that count, by class, surest first: above the tag's confidence, 16 at most.

    Overlapping ones all stay, as in GenEval.
    """
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > least:
            found.setdefault(detection.name, []).append(detection)
    return {name: objects[:MAX_OBJECTS] for name, objects in found.items()}


def strict(found: Mapping[str, Objects], request: Request, colours: Colours) -> bool:
    """The benchmark's verdict: every clause holds for the surest ``count`` objects of its class.

    More objects than asked are no fault unless ``exclude`` names them, as it does in counting. A
    relation must hold between every object of a clause and every one of its target.
    """
    groups: list[Objects] = []
    for clause in request.include:
        objects = found.get(clause.name, ())[: clause.count]
        if len(objects) < clause.count or coloured(objects, clause, colours) < clause.count:
            return False
        if clause.relation and not stand(objects, clause.relation, groups[clause.target]):
            return False
        groups.append(objects)
    return not any(_shows(found, clause) for clause in request.exclude)


def dense(found: Mapping[str, Objects], request: Request, colours: Colours) -> float:
    """Flow-GRPO's training reward (arXiv 2505.05470): a mean of terms, 1 where all is met.

    Of every clause ``1 - |count - found| / count``, which counts exactly and is negative above
    twice the count; where it names a colour, the same of the objects in that colour; where it names
    a relation, 1 or 0. Without the exact count, the latter two are 0.

    Deviations from its released server: a relation that fails is 0 there and a 1 is appended all
    the same; a clause with colour and relation has one term for both where its count is off (no
    GenEval prompt has both); ``exclude`` is not looked at. Here a class excluded but not included
    (in no GenEval prompt either) is a term, 1 or 0.
    """
    terms: list[float] = []
    groups: list[Objects | None] = []
    for clause in request.include:
        objects = found.get(clause.name, ())
        parts, met = _parts(objects, clause, colours, groups)
        terms += parts
        groups.append(objects if met else None)
    asked = {clause.name for clause in request.include}
    apart = [clause for clause in request.exclude if clause.name not in asked]
    terms += [float(not _shows(found, clause)) for clause in apart]
    return sum(terms) / len(terms)


def coloured(objects: Objects, clause: Clause, colours: Colours) -> int:
    """How many objects have the colour of a clause; all of them where it names none."""
    if clause.colour is None:
        return len(objects)
    return list(colours(objects)).count(clause.colour)


def stand(objects: Objects, relation: str, targets: Objects) -> bool:
    """Whether each of some objects stands in a relation to each of others."""
    return all(relation in relations(a.box, b.box) for a in objects for b in targets)


def relations(box: Sequence[float], other: Sequence[float]) -> set[str]:
    """How a box stands to another, by their centres: none, one or two of ``RELATIONS``.

    Per axis the offset ``d`` of the centres is shortened by ``SLACK`` times the sum of both sizes,
    not beyond 0; what remains, divided by the distance of the centres, must exceed ``DIRECTION``.
    """
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i]) for i in (0, 1)]
    rest = [max(abs(d) - SLACK * size, 0.0) for d, size in zip(offset, sizes, strict=True)]
    if max(rest) < 1e-3:
        return set()
    least = DIRECTION * (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    names = (("right of", "left of"), ("below", "above"))
    axes = zip(names, offset, rest, strict=True)
    return {after if d > 0 else before for (after, before), d, r in axes if r > least}


def by_tag(values: Sequence[float], requests: Sequence[Request]) -> dict[str, float]:
    """The mean of every tag and, under the empty key, the mean of those means: GenEval's overall
    score.
    """
    rows: dict[str, list[float]] = {}
    for value, request in zip(values, requests, strict=True):
        rows.setdefault(request.tag, []).append(value)
    means = {tag: sum(rows[tag]) / len(rows[tag]) for tag in TAGS if tag in rows}
    return {"": sum(means.values()) / len(means)} | means


def _parts(
    objects: Objects, clause: Clause, colours: Colours, groups: Sequence[Objects | None]
) -> tuple[list[float], bool]:
    """The terms of a clause, and whether it holds."""
    met = len(objects) == clause.count
    parts = [_nearness(clause.count, len(objects))]
    if clause.colour is not None:
        right = coloured(objects, clause, colours) if met else 0
        parts.append(_nearness(clause.count, right))
        met = right == clause.count
    if clause.relation is not None:
        targets = groups[clause.target]
        met = met and targets is not None and stand(objects, clause.relation, targets)
        parts.append(float(met))
    return parts, met


def _nearness(wanted: int, found: int) -> float:
    return 1 - abs(wanted - found) / wanted


def _shows(found: Mapping[str, Objects], clause: Clause) -> bool:
    return len(found.get(clause.name, ())) >= clause.count


def _clauses(prompt: Prompt, column: str) -> tuple[Clause, ...]:
    given = prompt.columns.get(column, [])
    if not isinstance(given, list):
        raise _refusal(prompt, f"its column `{column}` is {given!r}; expected a list of objects")
    return tuple(_clause(prompt, f"`{column}`[{i}]", i, row) for i, row in enumerate(given))


def _clause(prompt: Prompt, where: str, place: int, row: Any) -> Clause:
    row = dict(row) if isinstance(row, Mapping) else {}
    name, count, colour = row.pop("class", None), row.pop("count", None), row.pop("color", None)
    position = row.pop("position", None)
    if name not in CLASSES:
        raise _refusal(prompt, f"{where} has the class {name!r}, which is none of COCO's 80")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise _refusal(prompt, f"{where} has the count {count!r}; expected a whole number from 1")
    if colour is not None and colour not in COLOURS:
        raise _refusal(prompt, f"{where} has the color {colour!r}; there are {', '.join(COLOURS)}")
    if row:
        raise _refusal(prompt, f"{where} has the unknown key {min(row)!r}")
    relation, target = (None, 0) if position is None else _position(prompt, where, place, position)
    return Clause(name, count, colour, relation, target)


def _position(prompt: Prompt, where: str, place: int, given: Any) -> tuple[str, int]:
    if isinstance(given, list | tuple) and len(given) == 2:
        relation, target = given
        if relation in RELATIONS and type(target) is int and 0 <= target < place:
            return relation, target
    raise _refusal(
        prompt,
        f"{where} has the position {given!r}; expected a relation ({', '.join(RELATIONS)}) and the "
        "number, from 0, of an earlier clause",
    )


def _refusal(prompt: Prompt, what: str) -> RewardError:
    return RewardError(
        f"geneval cannot judge the prompt {prompt.id!r} ({prompt.text!r}): {what}. "
        "`python -m genrl_rewards.geneval_prompts FOLDER` writes files with the right columns"
    )
