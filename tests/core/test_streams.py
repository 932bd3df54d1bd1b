"""Random streams: what they draw is fixed for good, and nothing is made where nothing draws."""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from genrl_core.interfaces import streams
from genrl_core.interfaces.media import Prompt
from genrl_core.interfaces.records import Plan
from genrl_core.interfaces.streams import Streams
from genrl_core.loop import plan as plans
from genrl_core.loop.objectives import ObjectiveGroup
from genrl_core.loop.plan import plan_of
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.assembly import build_trainer

Make = Callable[..., Recipe]
GOLDEN = [
    ["0x1.e02892p-1", "0x1.44fe20p-1", "0x1.44368ep-1", "0x1.00e718p-1"],
    ["0x1.4a110cp+0", "-0x1.47bf92p+0", "-0x1.2e6f5ap-2", "0x1.2027dep+0"],
    ["0x1.247ee0p-1", "-0x1.a88a52p-2", "0x1.e18a98p-5", "-0x1.40d0c8p-1"],
    ["0x1.d9f1eep-1", "0x1.d9f1eep-1", "0x1.2d7cc8p-1", "0x1.2d7cc8p-1"],
]


def plan(samples: int = 3) -> Plan:
    return plan_of(7, 2, 1, [Prompt("a", "one"), Prompt("b", "two")], samples)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the generators that are made meanwhile."""
    keys: list[str] = []
    real = streams._generator

    def noting(key: str) -> np.random.Generator:
        keys.append(key)
        return real(key)

    monkeypatch.setattr(streams, "_generator", noting)
    return keys


def test_no_generator_is_made_where_nothing_draws(made: list[str]) -> None:
    streams = plan().streams("steps")
    joined = Streams.concat([streams, streams]).joined(plan(6).streams("corrupt"))
    assert len(joined.shared) == len(joined.across_updates) == 12
    assert made == []


def test_generators_are_made_by_the_first_draw_alone(made: list[str]) -> None:
    streams = plan().streams("rollout")
    for _ in range(3):
        streams.uniform(2)
        streams.normal()
    assert Counter(made) == Counter({f"7/2/1/rollout/{p}/{j}": 1 for p in "ab" for j in range(3)})


def test_samples_of_a_group_share_one_generator(made: list[str]) -> None:
    drawn = plan().streams("rollout").shared.normal(4)
    assert made == ["7/2/1/rollout/a", "7/2/1/rollout/b"]
    assert torch.equal(drawn, drawn[[0, 0, 0, 3, 3, 3]]) and not torch.equal(drawn[0], drawn[3])


@pytest.mark.parametrize(
    ("steps", "purposes"),
    [("all", {"rollout"}), ("first", {"rollout"}), ("random", {"rollout", "steps"})],
)
def test_an_iteration_makes_each_stream_once_and_those_it_draws_from_alone(
    toy_recipe: Make, made: list[str], steps: str, purposes: set[str]
) -> None:
    count = [] if steps == "all" else ["train.steps.count=2"]
    settings = [f"train.steps.choose={steps}", *count, "train.num_updates=2"]
    trainer = build_trainer(toy_recipe("toy_canvas", *settings))
    trainer.step()
    assert {key.split("/")[3] for key in made} == purposes
    assert max(Counter(made).values()) == 1


def test_the_order_of_an_epoch_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in every iteration: of a million prompts it takes longer than a small update."""
    prompts, orders = [Prompt(str(n), "x") for n in range(40)], []
    real = plans.permutation

    def noting(seed: int, *key: object, size: int) -> list[int]:
        orders.append(key)
        return real(seed, *key, size=size)

    monkeypatch.setattr(plans, "permutation", noting)
    drawn = [plans.training_plan(20251, step, 0, prompts, 4, 2) for step in range(15)]
    assert [[p.id for p in each.prompts] for each in drawn] == [
        [str(real(20251, "epoch", place // 40, size=40)[place % 40]) for place in range(at, at + 4)]
        for at in range(0, 60, 4)
    ]
    assert orders == [("epoch", 0), ("epoch", 1)]


def test_a_chunk_that_holds_all_rows_evaluates_the_loss_once(
    toy_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are the whole batch's; several chunks need one evaluation of them together."""
    seen: list[int] = []
    real = ObjectiveGroup.loss
    monkeypatch.setattr(
        ObjectiveGroup, "loss", lambda self, batch: seen.append(1) or real(self, batch)
    )
    found = []
    for rows in (512, 20):
        seen.clear()
        metrics = (
            build_trainer(toy_recipe("toy_canvas", f"train.micro_batch_size={rows}")).step().metrics
        )
        found.append((len(seen), metrics))
    (alone, whole), (several, pieces) = found
    assert alone == 1 and several > 2
    for name in ("loss", "ratio_mean", "log_probs", "grad_norm"):
        assert whole[name] == pytest.approx(pieces[name], abs=1e-12), name


def peer(key: str) -> np.random.Generator:
    """The documented stream, by numpy's own way of keying a generator."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def test_a_stream_is_philox_keyed_by_a_hash_of_the_coordinates() -> None:
    """In whatever order and shapes it is asked, bit by bit."""
    streams, keys = plan(2).streams("x"), [f"7/2/1/x/{p}/{j}" for p in "ab" for j in range(2)]
    peers = [peer(key) for key in keys]
    asked: list[tuple[str, tuple[int, ...], Any]] = [
        ("normal", (3, 5), lambda g: g.standard_normal((3, 5), np.float32)),
        ("uniform", (), lambda g: g.random((), np.float32)),
        ("gumbel", (7,), lambda g: g.gumbel(size=7).astype(np.float32)),
        ("uniform", (2, 2), lambda g: g.random((2, 2), np.float32)),
    ]
    for name, shape, own in asked:
        found = getattr(streams, name)(*shape)
        expected = torch.from_numpy(np.stack([own(g) for g in peers]))
        assert found.dtype == torch.float32 and torch.equal(found, expected), name


def test_numbers_are_those_that_were_recorded() -> None:
    """Recorded at afccea6: what a seed draws is part of what a run can be resumed and repeated by.

    Normal and Gumbel numbers also belong to numpy's versions, the uniform ones to Philox alone.
    """
    streams = plan(2).streams("rollout")
    found = [streams.uniform(1), streams.normal(1), streams.gumbel(1), streams.shared.uniform(1)]
    assert [one.flatten().tolist() for one in found] == [
        [float.fromhex(value) for value in row] for row in GOLDEN
    ]


def test_streams_of_no_samples_draw_nothing() -> None:
    assert Streams([], []).normal(2, 3).shape == (0, 2, 3)
