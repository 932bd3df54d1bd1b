"""Whether the code trains as another commit does, bit for bit: six recipes, 20 iterations each.

    python tests/golden_runs.py COMMIT      compare this tree with a commit, on this machine
    python tests/golden_runs.py --write     record this tree's metrics, for the gate

Every metric of every iteration is compared as the hexadecimal form of its float, times apart. The
commit is unpacked beside the tree and trains its own bases; both run on one thread of the CPU.
``tests/recipes/test_golden_runs.py`` compares with what was recorded: exactly on a machine of the
same kind, and to 1e-5 in the first iteration elsewhere.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "golden" / "runs.json"
RECIPES = (
    "digits/mask_grpo_p1", "digits/unigrpo", "digits/flow_grpo", "digits/diffusion_nft",
    "digits/grpo", "digits/draft",
)  # fmt: skip
ITERATIONS = 20

_PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
from genrl_core import load_recipe, train
fixed = ["run.device=cpu", "run.threads=1", "run.seed=0"]
for name, iterations in json.loads(sys.argv[1]):
    recipe = load_recipe(name, [*fixed, f"train.iterations={iterations}"])
    rows = [
        {k: float(v).hex() for k, v in record.metrics.items() if not k.startswith("seconds")}
        for record in train(recipe)
    ]
    print(json.dumps([name, rows]), flush=True)
"""

Rows = list[dict[str, str]]


def metrics_of(tree: Path, recipes: list[tuple[str, int]], cache: Path) -> dict[str, Rows]:
    """Recipe -> the metrics of every iteration, as the code under ``tree`` trains it."""
    environment = os.environ | {
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'plugins'}", "GENRL_CACHE": str(cache),
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", _PROGRAM, json.dumps(recipes)]
    ended = subprocess.run(
        command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE, text=True
    )
    lines = (json.loads(line) for line in ended.stdout.splitlines() if line.startswith("["))
    return dict(lines)


def fingerprint() -> dict[str, str]:
    """What the bits depend on beside the code: processor flags, torch, numpy, threads."""
    import numpy as np
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), platform.processor())
    return {
        "cpu": hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": "1",
    }


def differences(wanted: dict[str, Rows], found: dict[str, Rows]) -> list[str]:
    """Where two records part, the first place of each recipe, with the largest relative gap."""
    said = []
    for name, rows in wanted.items():
        pairs = list(zip(rows, found[name], strict=True))
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if first is not None:
            said.append(f"{name}: iteration {first + 1}, {_gaps(*pairs[first])}")
    return said


def _gaps(wanted: dict[str, str], found: dict[str, str]) -> str:
    odd = sorted(wanted.keys() ^ found.keys())
    parts = [f"only one has {', '.join(odd)}"] if odd else []
    parts += [
        f"{key} {float.fromhex(wanted[key])!r} {float.fromhex(found[key])!r}"
        for key in wanted.keys() & found.keys()
        if wanted[key] != found[key]
    ]
    return "; ".join(sorted(parts))


def relative_gap(wanted: Rows, found: Rows) -> float:
    """The largest relative difference of any metric; infinite where names differ."""
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.keys() != b.keys():
            return float("inf")
        for key in a:
            x, y = float.fromhex(a[key]), float.fromhex(b[key])
            worst = max(worst, 0.0 if a[key] == b[key] else abs(x - y) / max(abs(x), 1e-6))
    return worst


def unpack(commit: str, folder: Path) -> Path:
    """The tree of a commit."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="what to compare this tree with")
    parser.add_argument("--write", action="store_true", help=f"record into {RECORDED.name}")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--only", action="append", choices=RECIPES, help="repeatable")
    given = parser.parse_args()
    if not given.commit and not given.write:
        parser.error("name a commit, or --write")
    recipes = [(name, given.iterations) for name in given.only or RECIPES]
    with tempfile.TemporaryDirectory(prefix="genrl-golden-") as folder:
        cache = Path(os.environ.get("GENRL_CACHE") or Path(folder) / "cache")
        mine = metrics_of(ROOT, recipes, cache)
        if given.write:
            record: dict[str, Any] = {"fingerprint": fingerprint(), "metrics": mine}
            RECORDED.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{RECORDED.relative_to(ROOT)}: {len(mine)} recipes recorded")
        if not given.commit:
            return 0
        tree = Path(folder) / "tree"
        tree.mkdir()
        theirs = metrics_of(unpack(given.commit, tree), recipes, cache)
    apart = differences(theirs, mine)
    for line in apart:
        print(f"DIFFERS  {line}")
    if not apart:
        print(f"{len(mine)} recipes, {given.iterations} iterations: bit-equal to {given.commit}")
    return bool(apart)


if __name__ == "__main__":
    sys.exit(main())
