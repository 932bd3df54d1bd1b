"""Checkpoints: whole or absent whatever happens while they are written, and exact when read."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from genrl_core.errors import CheckpointError
from genrl_core.run import checkpoint, saving
from genrl_core.run.assembly import build_trainer
from genrl_core.run.checkpoint import latest, load, save
from genrl_core.run.optimizer import load_optimizer_state, optimizer_state
from genrl_core.testing.enumerable import ToyCanvas

ROOT = Path(checkpoint.__file__).parents[2]


def tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        "policy": {"a.weight": torch.randn(3, 5, generator=g), "half": torch.ones(4).bfloat16()},
        "optimizer": {"0.exp_avg": torch.randn(7, generator=g).double(), "n": torch.arange(3)},
    }


STATE = {"filter": {"history": [0.1, 1e-300, -0.0], "count": 3}, "best": None, "on": True}


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The path of the newest valid checkpoint, and why others were passed over."""
    snapshot, messages = latest(folder)
    return snapshot and snapshot.path, messages


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_round_trip_is_bit_exact(tmp_path):
    path = save(tmp_path, 120, tensors(), STATE, keep=2)
    assert path == tmp_path / "checkpoints" / "step_000120"
    snapshot = load(path)
    assert (snapshot.iteration, snapshot.path, snapshot.state) == (120, path, STATE)
    for group, named in tensors().items():
        assert snapshot.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert snapshot.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(snapshot.tensors[group][name], tensor)
    assert newest(tmp_path) == (path, [])
    assert json.loads((path.parent / "latest.json").read_text())["path"] == "step_000120"


def test_shared_viewed_and_empty_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    odd = {"tied": base, "again": base, "column": base[:, 1], "turned": base.T}
    odd |= {"none": torch.zeros(0), "nothing": torch.zeros(0, 3), "number": torch.tensor(2.5)}
    back = load(save(tmp_path, 1, {"policy": odd, "empty": {}}, {}, keep=1)).tensors
    assert back["empty"] == {}
    assert all(torch.equal(back["policy"][name], odd[name]) for name in odd)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"state\.a\.b\[1\] is nan"),
        ({"a": float("-inf")}, r"state\.a is -inf"),
        ({"a": {3: 1}}, r"state\.a has the key 3"),
        ({"a": torch.ones(1)}, r"state\.a is a Tensor"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path, state, where):
    with pytest.raises(CheckpointError, match=where):
        save(tmp_path, 1, tensors(), state, keep=1)
    assert newest(tmp_path) == (None, [])


def test_pruning_keeps_the_newest_and_touches_nothing_else(tmp_path):
    root = tmp_path / "checkpoints"
    for stray in ("step_x", "step_000001-copy", "best", "step_", "xstep_000001"):
        (root / stray).mkdir(parents=True)
    (root / "step_000003").write_text("a file, not a folder")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine")
    (root / "step_000002").symlink_to(outside)
    (root / ".tmp-step_000007-dead").mkdir()
    (root / ".tmp-link").symlink_to(outside)
    strays = {name for name in names(tmp_path) if not name.startswith(".tmp-")}
    for iteration in (10, 20, 30, 40):
        save(tmp_path, iteration, tensors(), STATE, keep=2)
    assert set(names(tmp_path)) == strays | {"step_000030", "step_000040", "latest.json"}
    assert (outside / "keep.txt").read_text() == "mine"
    assert newest(tmp_path) == (root / "step_000040", [])
    save(tmp_path, 50, tensors(), STATE, keep=4)  # more than there are
    assert {"step_000030", "step_000040", "step_000050"} <= set(names(tmp_path))
    save(tmp_path, 1_000_000, tensors(), STATE, keep=1)
    assert newest(tmp_path)[0] == root / "step_1000000"
    assert "step_000050" not in names(tmp_path)


def test_saving_earlier_than_what_stands_abandons_the_later_ones(tmp_path):
    for iteration in (10, 20, 30):
        save(tmp_path, iteration, tensors(), STATE, keep=3)
    path = save(tmp_path, 15, tensors(1), STATE, keep=3)  # resumed from 10
    assert names(tmp_path) == ["latest.json", "step_000010", "step_000015"]
    assert newest(tmp_path) == (path, [])


@pytest.mark.parametrize("damaged", [False, True])
def test_saving_the_same_iteration_again(tmp_path, damaged):
    path = save(tmp_path, 10, tensors(0), STATE, keep=2)
    if damaged:
        (path / "state.json").unlink()
    save(tmp_path, 10, tensors(1), STATE, keep=2)
    assert torch.equal(
        load(path).tensors["policy"]["a.weight"], tensors(1)["policy"]["a.weight"]
    )  # fmt: skip
    inode = path.stat().st_ino
    save(tmp_path, 10, tensors(1), STATE, keep=2)
    assert path.stat().st_ino == inode, "an equal checkpoint is left alone"
    assert names(tmp_path) == ["latest.json", "step_000010"]


def damage_truncate(path: Path) -> str:
    os.truncate(path / "policy.safetensors", 50)
    return r"policy\.safetensors is truncated"


def damage_flip(path: Path) -> str:
    content = bytearray((path / "policy.safetensors").read_bytes())
    content[-3] ^= 4
    (path / "policy.safetensors").write_bytes(content)
    return r"policy\.safetensors is damaged"


def damage_missing(path: Path) -> str:
    (path / "optimizer.safetensors").unlink()
    return r"optimizer\.safetensors is missing"


def damage_manifest(path: Path) -> str:
    (path / "MANIFEST.json").unlink()
    return r"MANIFEST\.json is missing"


def damage_half_manifest(path: Path) -> str:
    os.truncate(path / "MANIFEST.json", 100)
    return r"MANIFEST\.json is unreadable"


def damage_no_mapping(path: Path) -> str:
    (path / "MANIFEST.json").write_text("[1]")
    return r"MANIFEST\.json is unreadable"


def damage_empty(path: Path) -> str:
    shutil.rmtree(path)
    path.mkdir()
    return r"MANIFEST\.json is missing"


def damage_version(path: Path) -> str:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps(manifest | {"format": 99}))
    return r"format version 99 is unknown; this GenRL reads 2"


def damage_iteration(path: Path) -> str:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps(manifest | {"iteration": 7}))
    return r"disagree on the iteration"


def damage_escape(path: Path) -> str:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"]["../../secret.safetensors"] = {"size": 0, "sha256": ""}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    return r"no file of a checkpoint"


def damage_link(path: Path) -> str:
    file = path / "policy.safetensors"
    moved = path.parent / "elsewhere"
    file.rename(moved)
    file.symlink_to(moved)
    return r"policy\.safetensors is missing"


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate, damage_flip, damage_missing, damage_manifest, damage_half_manifest,
        damage_no_mapping, damage_empty, damage_version, damage_iteration, damage_escape,
        damage_link,
    ],
)  # fmt: skip
def test_damage_is_named_and_the_older_one_taken(tmp_path, damage):
    good = save(tmp_path, 10, tensors(), STATE, keep=2)
    bad = save(tmp_path, 20, tensors(), STATE, keep=2)
    message = damage(bad)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(bad)
    assert str(bad) in str(caught.value)
    path, messages = newest(tmp_path)
    assert path == good
    assert len(messages) == 1
    assert str(caught.value) in messages[0]
    assert load(good).iteration == 10


def test_any_flipped_bit_of_any_file_is_noticed(tmp_path):
    path = save(tmp_path, 10, tensors(), STATE, keep=2)
    dice = random.Random(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), 2 if len(whole) < 700 else 9):
            broken = bytearray(whole)
            broken[place] ^= 1 << dice.randrange(8)
            file.write_bytes(broken)
            with pytest.raises(CheckpointError):
                load(path)
        file.write_bytes(whole)
    assert load(path).state == STATE


def test_latest_json_is_a_hint_and_never_obeyed(tmp_path):
    assert newest(tmp_path) == (None, [])
    path = save(tmp_path, 10, tensors(), STATE, keep=2)
    pointer = path.parent / "latest.json"
    pointer.write_text('{"path": "step_000099"}')
    found, messages = newest(tmp_path)
    assert found == path
    assert "step_000099" in messages[0]
    pointer.write_text("{half")
    assert newest(tmp_path)[0] == path
    pointer.unlink()
    assert newest(tmp_path) == (path, [])
    shutil.rmtree(path)
    assert newest(tmp_path) == (None, [])
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load(path)


# Death at any moment.


def in_child(work) -> int:
    """Run ``work`` in a forked process; how the process ended, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(count: int, folder: Path) -> int:
    """Save in a child that kills itself at its ``count``-th system call that changes the disk."""

    def work():
        left = count

        def deadly(call):
            def wrapped(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapped

        for name in ("mkdir", "fsync", "replace", "rmdir", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        checkpoint.save_file = deadly(checkpoint.save_file)
        save(folder, 30, tensors(3), STATE, keep=2)

    return in_child(work)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_killed_at_any_system_call_a_checkpoint_is_whole_or_absent(tmp_path):
    outcomes = []
    for count in range(1, 100):
        folder = tmp_path / str(count)
        for iteration in (10, 20):
            save(folder, iteration, tensors(iteration), STATE, keep=2)
        ended = killed_at(count, folder)
        path, messages = newest(folder)
        assert messages == []
        for step in (folder / "checkpoints").glob("step_*"):
            load(step)  # no older one is half-deleted either
        outcomes.append(load(path).iteration)
        seed = {20: 20, 30: 3}[outcomes[-1]]
        expected = tensors(seed)["policy"]["a.weight"]
        assert torch.equal(load(path).tensors["policy"]["a.weight"], expected)
        again = save(folder, 30, tensors(3), STATE, keep=2)
        assert newest(folder) == (again, [])
        assert names(folder) == ["latest.json", "step_000020", "step_000030"], "leftovers"
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert ended == 0
    assert len(outcomes) > 15
    assert outcomes == sorted(outcomes), "old until the renaming, new from then on"
    assert {20, 30} == set(outcomes)


SLOW_WRITER = """
    import sys, time
    from pathlib import Path
    import torch
    from genrl_core.run import checkpoint

    stage, folder = sys.argv[1], Path(sys.argv[2])

    def stop(*args):
        print("here", flush=True)
        time.sleep(60)

    def half(named, path):
        path.write_bytes(b"half of a file")
        stop()

    write = checkpoint.write_atomically

    def stop_before(path, text):
        if stage == f"before {path.name}":
            stop()
        write(path, text)

    checkpoint.write_atomically = stop_before
    if stage == "tensors":
        checkpoint.save_file = half
    elif stage == "before renaming":
        checkpoint._move_in = stop
    checkpoint.save(folder, 20, {"policy": {"w": torch.ones(3)}}, {}, keep=2)
"""


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("tensors", 10), ("before MANIFEST.json", 10), ("before renaming", 10),
        ("before latest.json", 20),
    ],
)  # fmt: skip
def test_a_writer_killed_from_outside(tmp_path, stage, expected):
    save(tmp_path, 10, tensors(), STATE, keep=2)
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_WRITER), stage, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert writer.stdout.readline() == b"here\n"
    time.sleep(0.05)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert any(name.startswith(".tmp-step_000020") for name in names(tmp_path)) == (expected == 10)
    path, _ = newest(tmp_path)
    assert load(path).iteration == expected
    save(tmp_path, 30, tensors(), STATE, keep=5)
    assert not any(name.startswith(".tmp-") for name in names(tmp_path))


# A full disk.


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, call):
    for iteration in (10, 20):
        save(tmp_path, iteration, tensors(), STATE, keep=2)
    before, real, calls = tree(tmp_path), getattr(os, call), []

    def full(*args, **kwargs):
        calls.append(args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, 30, tensors(), STATE, keep=2)
    monkeypatch.setattr(os, call, real)
    assert calls
    assert tree(tmp_path) == before
    assert names(tmp_path) == ["latest.json", "step_000010", "step_000020"]
    assert load(save(tmp_path, 30, tensors(), STATE, keep=2)).iteration == 30


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_that_the_system_will_not_let_grow(tmp_path):
    """No mock: the kernel refuses the write, inside safetensors' own code."""
    save(tmp_path, 10, tensors(), STATE, keep=2)
    before = tree(tmp_path)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(CheckpointError, match="File too large"):
            save(tmp_path, 20, {"policy": {"w": torch.ones(10_000)}}, STATE, keep=2)
        os._exit(42)

    assert in_child(work) == 42
    assert tree(tmp_path) == before


def test_an_interrupt_leaves_no_rubbish(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_move_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 30, tensors(), STATE, keep=2)
    assert names(tmp_path) == []


# Optimizers.


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def adamw(network, **kwargs) -> torch.optim.Optimizer:
    groups = [
        {"params": [network[0].weight, network[2].weight], "weight_decay": 0.1},
        {"params": [network[0].bias, network[2].bias], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), **kwargs)


def learn(network, optimizer, steps: range) -> None:
    for step in steps:
        g = torch.Generator().manual_seed(step)
        loss = network(torch.randn(16, 4, generator=g)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()


KINDS = {
    "plain": dict,
    "fused": lambda: {"fused": True},
    "amsgrad": lambda: {"amsgrad": True, "foreach": False},
    "maximize": lambda: {"maximize": True, "foreach": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 3])
def test_an_optimizer_continues_identically(tmp_path, kind, steps):
    straight = model()
    straight_optimizer = adamw(straight, **KINDS[kind]())
    learn(straight, straight_optimizer, range(steps))
    held, json_state = optimizer_state(straight, straight_optimizer)
    groups = {"policy": straight.state_dict(), "optimizer": held}
    path = save(tmp_path, steps, groups, {"optimizer": json_state}, keep=1)
    learn(straight, straight_optimizer, range(steps, 8))

    snapshot = load(path)
    resumed = model()
    resumed_optimizer = adamw(resumed, **KINDS[kind]())
    resumed.load_state_dict(snapshot.tensors["policy"])
    load_optimizer_state(
        resumed, resumed_optimizer, snapshot.tensors["optimizer"], snapshot.state["optimizer"]
    )
    kept = {name: tensor.clone() for name, tensor in snapshot.tensors["optimizer"].items()}
    learn(resumed, resumed_optimizer, range(steps, 8))

    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert_equal_nested(straight_optimizer.state_dict(), resumed_optimizer.state_dict())
    for name, tensor in snapshot.tensors["optimizer"].items():
        assert torch.equal(tensor, kept[name]), "the optimizer wrote into the snapshot"


def assert_equal_nested(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_nested(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal_nested(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    else:
        assert a == b


def test_settings_that_are_tensors_survive(tmp_path):
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=torch.tensor(0.01), foreach=False)
    held, json_state = optimizer_state(network, optimizer)
    assert "param_groups.0.lr" in held
    snapshot = load(save(tmp_path, 0, {"o": held}, {"o": json_state}, keep=1))
    other = torch.optim.AdamW(network.parameters(), lr=torch.tensor(0.5), foreach=False)
    load_optimizer_state(network, other, snapshot.tensors["o"], snapshot.state["o"])
    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(0.01))


def test_what_is_saved_is_named_after_its_parameter():
    network = model()
    optimizer = adamw(network)
    learn(network, optimizer, range(1))
    held, json_state = optimizer_state(network, optimizer)
    entries = ("exp_avg", "exp_avg_sq", "step")
    assert sorted(held) == [f"{n}.{e}" for n in sorted(network.state_dict()) for e in entries]
    assert [group["params"] for group in json_state["param_groups"]] == [
        ["0.weight", "2.weight"], ["0.bias", "2.bias"],
    ]  # fmt: skip
    assert json.loads(json.dumps(json_state))


def test_an_optimizer_that_took_no_step_takes_none_by_being_saved_or_loaded():
    """Torch would give it a state by a step with zero gradients, which bias corrections count."""
    network = model()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer, other = adamw(network), adamw(network)
    load_optimizer_state(network, other, *optimizer_state(network, optimizer))
    assert not optimizer.state and not other.state
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_a_parameter_without_a_gradient_has_no_state_before_or_after(tmp_path):
    network, still = model(), model()
    optimizer = adamw(network)
    network[2].bias.requires_grad_(False)
    learn(network, optimizer, range(2))
    network[2].bias.requires_grad_(True)
    held, json_state = optimizer_state(network, optimizer)
    snapshot = load(save(tmp_path, 2, {"o": held}, {"o": json_state}, keep=1))
    other = adamw(still)
    load_optimizer_state(still, other, snapshot.tensors["o"], snapshot.state["o"])
    assert_equal_nested(optimizer.state_dict(), other.state_dict())
    assert still[2].bias not in other.state
    still.load_state_dict(network.state_dict())
    for each, one in ((network, optimizer), (still, other)):
        learn(each, one, range(2, 4))
    assert all(torch.equal(t, still.state_dict()[name]) for name, t in network.state_dict().items())


def other_network():
    network = model()
    network[0], network[2] = torch.nn.Linear(4, 9), torch.nn.Linear(9, 2)
    return network


REFUSED = {
    "another class": (
        model, lambda n: torch.optim.SGD(n.parameters(), lr=0.1),
        "optimizer is AdamW, the recipe's is SGD",
    ),
    "other groups": (
        model, lambda n: torch.optim.AdamW(n.parameters()), "trains parameters in other groups",
    ),
    "fewer parameters": (
        model, lambda n: torch.optim.AdamW(n[0].parameters()),
        r"trains other parameters \(2\.bias, 2\.weight\)",
    ),
    "other shapes": (
        other_network, adamw,
        r"exp_avg of 0\.weight is float32 \[8, 4\], and its parameter is float32 \[9, 4\]",
    ),
    "another type": (
        lambda: model().double(), adamw, "of 0.weight is float32 .*, and its parameter is float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_optimizer_is_refused(case):
    network = model()
    optimizer = adamw(network)
    learn(network, optimizer, range(1))
    held, json_state = optimizer_state(network, optimizer)
    other, build, message = REFUSED[case]
    found = other()
    with pytest.raises(CheckpointError, match=message):
        load_optimizer_state(found, build(found), held, json_state)


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickle")

    for module, name in (("torch", "load"), ("torch", "save"), ("pickle", "dumps"),
                         ("pickle", "loads"), ("pickle", "dump"), ("pickle", "load")):  # fmt: skip
        monkeypatch.setattr(sys.modules[module], name, forbidden)
    network = model()
    optimizer = adamw(network)
    learn(network, optimizer, range(2))
    held, json_state = optimizer_state(network, optimizer)
    groups = {"policy": network.state_dict(), "optimizer": held}
    path = save(tmp_path, 2, groups, {"optimizer": json_state}, keep=1)
    load(path)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
    for file in path.iterdir():
        start = file.read_bytes()[:10]
        assert not start.startswith((b"\x80", b"PK")), "a pickle or a zip of pickles"
        assert start[:1] == b"{" or start[8:9] == b"{"


# What fits its hashes and is still no checkpoint of this optimizer: said, and never handed on.


def shorter(held, packed):
    held["table.exp_avg"] = held["table.exp_avg"][:1].clone()


def scalar(held, packed):
    held["table.exp_avg_sq"] = torch.tensor(1.0)


def halved(held, packed):
    held["second.exp_avg"] = held["second.exp_avg"].half()


def lacking(held, packed):
    del held["second.exp_avg_sq"], packed["state"]["second"]["exp_avg_sq"]


def lost(held, packed):
    del held["second.exp_avg_sq"]


def unstepped(held, packed):
    for name in [name for name in held if name.startswith("second.")]:
        del held[name]


def foreign(held, packed):
    held["seventh.exp_avg"] = torch.ones(2)


def foreign_and_described(held, packed):
    for name in packed["state"]["second"]:
        held[f"seventh.{name}"] = held[f"second.{name}"]
    packed["state"]["seventh"] = packed["state"]["second"]


def odd_name(held, packed):
    held["exp_avg"] = torch.ones(2)


def many_steps(held, packed):
    held["table.step"] = torch.ones(3)


def whole_steps(held, packed):
    held["table.step"] = torch.tensor(3)


def settings_lost(held, packed):
    del packed["param_groups"][0]["betas"]


def settings_odd(held, packed):
    packed["param_groups"][0]["lr"] = "fast"


def listed(held, packed):
    packed["param_groups"] = [[1, 2], [3]]


def regrouped(held, packed):
    packed["param_groups"][0]["params"] = ["second", "table"]


ODD = [
    shorter, scalar, halved, lacking, lost, unstepped, foreign, foreign_and_described, odd_name,
    many_steps, whole_steps, settings_lost, settings_odd, listed, regrouped,
]  # fmt: skip


@pytest.fixture
def trainer_of(toy_recipe):
    """A trainer of two iterations with a checkpoint whose optimizer ``change`` has altered."""

    def make(folder, change):
        recipe = toy_recipe("toy_canvas")

        class Layered(ToyCanvas):
            def __init__(self):
                super().__init__()
                table = torch.nn.Parameter(torch.zeros(27, 6, dtype=torch.float64))
                self.network.register_parameter("second", table)

        first = build_trainer(recipe, policy=Layered())
        for parameter in first.weight_sets.trainable.values():
            parameter.grad = torch.ones_like(parameter)
        first.parts.optimizer.step()
        first.iteration = 2
        saving.save(first, recipe, folder)
        snapshot = latest(folder)[0]
        groups, state = dict(snapshot.tensors), dict(snapshot.state)
        change(groups["optimizer"], state["optimizer"])
        save(folder, 2, groups, state, keep=2)
        return build_trainer(recipe, policy=Layered()), recipe, latest(folder)[0]

    return make


@pytest.mark.parametrize("change", ODD)
def test_moments_that_do_not_fit_their_parameters_are_refused(tmp_path, trainer_of, change):
    """The fused AdamW reads as many numbers as the parameter has, whatever the moment holds."""
    trainer, recipe, snapshot = trainer_of(tmp_path, change)
    before = {name: p.detach().clone() for name, p in trainer.weight_sets.trainable.items()}
    said = None
    try:
        saving.restore(trainer, recipe, snapshot)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is to be of one kind
        said = error
    assert type(said) is CheckpointError, repr(said)
    assert "\n" not in str(said)
    for name, parameter in trainer.weight_sets.trainable.items():
        assert torch.equal(parameter, before[name]), "a refused checkpoint changes nothing"


def test_moments_that_fit_are_taken(tmp_path, trainer_of):
    trainer, recipe, snapshot = trainer_of(tmp_path, lambda held, packed: None)
    saving.restore(trainer, recipe, snapshot)
    assert trainer.iteration == 2


BAD_STATES = {
    "nested too deeply": b"[" * 100_000,
    "a list": b"[1, 2]",
    "no number of iterations": b'{"iteration": -5, "state": {}}',
    "a list for the state": b'{"iteration": 2, "state": [1]}',
    "a truth value": b'{"iteration": true, "state": {}}',
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_state_that_no_save_wrote_is_passed_over(tmp_path, kind):
    """Its hashes fit, so that only its meaning can tell."""
    older = save(tmp_path, 1, tensors(), STATE, keep=2)
    newer = save(tmp_path, 2, tensors(), STATE, keep=2)
    (newer / "state.json").write_bytes(BAD_STATES[kind])
    said = json.loads((newer / "MANIFEST.json").read_text())
    content = (newer / "state.json").read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    said["files"]["state.json"] = entry
    if b'"iteration": ' in content:
        said["iteration"] = json.loads(content)["iteration"]
    (newer / "MANIFEST.json").write_text(json.dumps(said))
    failed = None
    try:
        found = newest(tmp_path)
    except Exception as error:  # noqa: BLE001  # whatever it is
        failed = error
    assert failed is None, repr(failed)
    assert found[0] == older and "passed over" in found[1][0]


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1, tensors(), STATE, keep=1)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
