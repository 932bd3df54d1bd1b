"""What an iteration costs over its bare network work, on the digits of every paradigm.

    python tests/benchmarks/floor.py [--against COMMIT] [--write] [CASE ...]

The bare work of an iteration, its floor, is what its network did: the same forwards on the same
inputs, the same backwards from the same gradients, the clip and the optimizer's steps, replayed
without the framework. Iterations and their floors alternate in one process on one thread, each from
the same weights; two commits alternate in one run, process by process. Ratios are medians over
pairs, of seconds of the processor, which other jobs disturb least. Writes floor.json, with the
table of README.md between its markers.
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import HERE, provenance

if TYPE_CHECKING:
    from torch import Tensor

    from genrl_core.loop.trainer import Trainer

CASES = {
    "masked": ("digits/mask_grpo", 1.10),
    "diffusion": ("digits/flow_grpo", 1.30),
    "autoregressive": ("digits/grpo", 1.30),
}
"""Label -> recipe, and how many floors an iteration may cost."""
ITERATIONS = 3
"""How many iterations of a run are measured: they differ in the groups that their filter keeps."""
Timed = dict[str, list[float]]
"""``iteration`` and ``floor``, seconds of the processor, pair by pair; their ``wall`` seconds."""


@dataclass
class Call:
    """One forward of the network, and the gradients that came back to what it returned.

    Attributes:
        past: name of an argument -> the field of the call before that it was.
        gradients: place among the tensors returned -> its gradient.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: bool
    past: dict[str, Any]
    gradients: "dict[int, Tensor]" = field(default_factory=dict)


STEP = "step"
"""Stands between the calls for the clip and a step of the optimizer."""


def recorded(trainer: "Trainer") -> list[Call | str]:
    """What the network and the optimizer do in the next iteration of the trainer."""
    import torch

    events: list[Call | str] = []
    before: dict[str, Any] = {}

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        past = {name: key for name, value in kwargs.items() if value is not None
                for key, known in before.items() if known is value}  # fmt: skip
        kept = {name: _kept(value) for name, value in kwargs.items() if name not in past}
        call = Call(tuple(map(_kept, args)), kept, torch.is_grad_enabled(), past)
        events.append(call)
        for place, tensor in enumerate(_tensors(found)):
            if tensor.requires_grad:
                tensor.register_hook(lambda g, p=place: call.gradients.update({p: g.clone()}))
        before.clear()
        before.update(found if hasattr(found, "keys") else {})

    hooks = [
        trainer.parts.policy.network.register_forward_hook(note, with_kwargs=True),
        trainer.parts.optimizer.register_step_post_hook(lambda *_: events.append(STEP)),
    ]
    trainer.step()
    for hook in hooks:
        hook.remove()
    return events


def _kept(value: Any) -> Any:
    """An argument as it was: a network may write to what is no tensor, such as a cache."""
    return value.detach() if hasattr(value, "detach") else copy.deepcopy(value)


def _tensors(found: Any) -> "list[Tensor]":
    values = found.values() if hasattr(found, "values") else found
    return [value for value in values if hasattr(value, "requires_grad")]


def replay(trainer: "Trainer", events: Sequence[Call | str]) -> None:
    """The floor: these calls again, with nothing around them."""
    import torch

    parameters = list(trainer.weight_sets.trainable.values())
    limit = trainer.parts.train.max_grad_norm
    found: Any = None
    for event in events:
        if isinstance(event, str):
            torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
            trainer.parts.optimizer.step()
            trainer.parts.optimizer.zero_grad(set_to_none=True)
            continue
        kwargs = {name: _kept(value) for name, value in event.kwargs.items()}
        kwargs |= {name: found[key] for name, key in event.past.items()}
        with torch.set_grad_enabled(event.grad):
            found = trainer.parts.policy.network(*event.args, **kwargs)
        if event.gradients:
            outputs = _tensors(found)
            reached = [outputs[place] for place in event.gradients]
            torch.autograd.backward(reached, list(event.gradients.values()))


def snapshot(trainer: "Trainer") -> Callable[[], None]:
    """What brings the trainer back to where it is now."""
    weights = {name: p.detach().clone() for name, p in trainer.weight_sets.trainable.items()}
    optimizer, iteration = copy.deepcopy(trainer.parts.optimizer.state_dict()), trainer.iteration

    def restore() -> None:
        trainer.iteration = iteration
        trainer.weight_sets.load_state_dict(trainer.weight_sets.state_dict() | weights)
        trainer.parts.optimizer.load_state_dict(copy.deepcopy(optimizer))

    return restore


def measure(recipe: str, repeat: int) -> Timed:
    """Iterations and their floors in pairs, in turns, after one of each that does not count."""
    import torch

    from genrl_core.recipe.recipe import load_recipe
    from genrl_core.run.assembly import build_trainer

    torch.set_num_threads(1)
    trainer = build_trainer(load_recipe(recipe, ["run.threads=1", "run.device=cpu"]))
    found: Timed = {"iteration": [], "floor": [], "iteration_wall": [], "floor_wall": []}
    cases = []
    for _ in range(ITERATIONS):
        restore = snapshot(trainer)
        cases.append((restore, recorded(trainer)))
    for turn in range(repeat + 1):
        for restore, events in cases:
            sides = {"iteration": trainer.step, "floor": lambda e=events: replay(trainer, e)}
            for name in sorted(sides, reverse=turn % 2 == 1):
                restore()
                start, wall = time.process_time(), time.perf_counter()
                sides[name]()
                if turn:
                    found[name].append(time.process_time() - start)
                    found[f"{name}_wall"].append(time.perf_counter() - wall)
    return found


def measured(checkout: Path, label: str, repeat: int) -> Timed:
    """``measure`` in a process of its own, with the packages of a checkout."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = [str(checkout), str(checkout / "plugins")]
    path = os.pathsep.join([*own, *(one for one in others if one and not _is_checkout(one))])
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--repeat", str(repeat)]
    done = subprocess.run(
        [*command, label], capture_output=True, text=True, check=False, cwd=checkout,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{label} failed in {checkout}:\n{done.stderr[-2000:]}")
    timed: Timed = json.loads(done.stdout.splitlines()[-1])
    return timed


def _is_checkout(folder: str) -> bool:
    return bool(list(Path(folder).glob("genrl_*")))


@contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """A worktree of a commit, for as long as the block runs."""
    git = ["git", "-C", str(HERE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkout"
        subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def compare(labels: Sequence[str], sides: dict[str, Path], given: argparse.Namespace) -> Any:
    """All cases on all sides, side after side, round after round: label -> side -> figures."""
    found: dict[str, dict[str, Timed]] = {label: {side: {} for side in sides} for label in labels}
    for turn in range(given.rounds):
        for label in labels:
            for side in sorted(sides, reverse=turn % 2 == 1):
                timed = measured(sides[side], label, given.repeat)
                for name, values in timed.items():
                    found[label][side].setdefault(name, []).extend(values)
    return {
        label: {side: summary(timed) for side, timed in rows.items()}
        for label, rows in found.items()
    }


def summary(timed: Timed) -> dict[str, float]:
    """Medians: the ratio of the pairs with its quartiles, and milliseconds of both."""
    pairs = list(zip(timed["iteration"], timed["floor"], strict=True))
    walls = zip(timed["iteration_wall"], timed["floor_wall"], strict=True)
    low, middle, high = statistics.quantiles([own / floor for own, floor in pairs], n=4)
    return {
        "ratio": middle, "low": low, "high": high, "pairs": len(pairs),
        "ratio_wall": statistics.median(own / floor for own, floor in walls),
        "iteration_ms": 1e3 * statistics.median(own for own, _ in pairs),
        "floor_ms": 1e3 * statistics.median(floor for _, floor in pairs),
    }  # fmt: skip


def shown(results: dict[str, Any]) -> str:
    """The table of README.md."""
    head = "| case | commit | ratio (quartiles) | by the clock | iteration / floor, ms | at most |"
    lines = [head, "|" + "---|" * 6]
    for label, rows in results["cases"].items():
        recipe, limit = CASES[label]
        for side, row in rows.items():
            ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            times = f"{row['iteration_ms']:.1f} / {row['floor_ms']:.1f}"
            cells = [f"{label}, `{recipe}`", f"`{results['commits'][side]}`", ratio]
            lines.append(
                f"| {' | '.join(cells)} | {row['ratio_wall']:.2f} | {times} | {limit:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="measured beside the working tree")
    parser.add_argument("--repeat", type=int, default=10, help="turns of a process")
    parser.add_argument("--rounds", type=int, default=4, help="processes of a side and case")
    parser.add_argument("--write", action="store_true", help="floor.json and README.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; silent: all")
    given = parser.parse_args()
    labels = given.cases or list(CASES)
    if given.worker:
        print(json.dumps(measure(CASES[labels[0]][0], given.repeat)))
        return
    start = time.perf_counter()
    sides = {"tree": HERE.parents[1]}
    if given.against:
        with checkout_of(given.against) as path:
            cases = compare(labels, sides | {"against": path}, given)
    else:
        cases = compare(labels, sides, given)
    results = provenance(" ".join(["python", *sys.argv]), [0], start)
    results |= {"cases": cases, "commits": {"tree": results["commit"], "against": given.against}}
    results |= {"date": datetime.now(UTC).date().isoformat(), "versions": versions()}
    results |= {"load": os.getloadavg()[0], "rounds": given.rounds, "repeat": given.repeat}
    print(shown(results))
    if given.write:
        publish(results)


def versions() -> dict[str, str]:
    """Of what does the work."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "numpy", "transformers", "scikit-learn")}


def publish(results: dict[str, Any]) -> None:
    """Write floor.json, and the table between its markers of README.md."""
    (HERE / "floor.json").write_text(json.dumps(results, indent=1) + "\n")
    path = HERE / "README.md"
    begin, end = "<!-- floor: begin -->", "<!-- floor: end -->"
    text = path.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    path.write_text(f"{before}{begin}\n{shown(results)}\n{end}{after}")


if __name__ == "__main__":
    main()
