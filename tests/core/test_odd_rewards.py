"""What rewards may return: numbers or None, one per sample; anything else stops the run by name."""

import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genrl_core.errors import RewardError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.records import Tensors
from genrl_core.interfaces.reward import Reward
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.evaluate import Evaluator
from genrl_core.loop.generate import score_rewards
from genrl_core.loop.views.reward import reward_gradient
from genrl_core.recipe.recipe import Recipe
from genrl_core.run.assembly import train
from genrl_core.testing import ToyCanvas, ToyCanvasSampler


class Odd(Reward):
    """Returns whatever it was told to."""

    def __init__(self, answer: Callable[[Any], Any]):
        self._answer = answer

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> Sequence[float | None]:
        return self._answer(len(prompts))

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self._answer(pixels)


def prompts_of(count: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{i}", f"prompt {i}") for i in range(count))


def leaves(_: int) -> list[float]:
    sys.exit(0)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: dict.fromkeys(range(n), 1.0), "of type dict for 12 samples"),
        (lambda n: dict.fromkeys(range(n), 1.0).values(), "of type dict_values for 12"),
        (bytes, "of type bytes for"),
        (lambda n: memoryview(bytes(n)), "of type memoryview of shape [12] for"),
        (lambda n: "1" * n, "of type str for"),
        (lambda n: set(map(float, range(n))), "of type set for"),
        (lambda n: (1.0 for _ in range(n)), "of type generator for"),
        (lambda n: 1.0, "of type float for"),
        (lambda n: torch.tensor(1.0), "of type Tensor of shape [] for"),
        (lambda n: np.ones((n, 1)), "of type ndarray of shape [12, 1] for"),
        (lambda n: [10**400] * n, "for sample 0 (prompt '"),
        (lambda n: [10**5000] * n, "what cannot be shown for sample 0"),
        (lambda n: [1.0, 1j] * (n // 2), "gave 1j for sample 1"),
        (lambda n: torch.ones(n, dtype=torch.complex64), "of type complex, which is no number"),
        (lambda n: torch.ones(n).bool(), "of type bool, which is no number"),
        (lambda n: [np.bool_(1)] * n, "of type bool, which is no number"),
        (lambda n: [torch.ones(1)] * n, "of type Tensor, which is no number"),
        (lambda n: [[1.0]] * n, "of type list, which is no number"),
        (lambda n: np.array(["1"] * n), "of type str, which is no number"),
        (leaves, "raised SystemExit: 0"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(
    toy_recipe: Callable[..., Recipe], answer: Callable[[int], Any], message: str
) -> None:
    """By what trains and what evaluates, in a sentence that names the reward."""
    prompts = prompts_of(12)
    media = Media("text", texts=("",) * 12)
    odd = Odd(answer)
    for call in (
        lambda: next(train(toy_recipe("toy_canvas"), rewards={"mine": odd})),
        lambda: measured({"mine": odd}, media, prompts),
    ):
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            call()
        assert isinstance(caught.value, RewardError), repr(caught.value)
        assert message in str(caught.value)
        assert re.match("(reward|measure) '(mine|Odd)' ", str(caught.value)), (
            "its label, or its class"
        )


class Drawn(ToyCanvas):
    """Whatever is drawn, it makes the same media of it."""

    def __init__(self, media: Media):
        super().__init__()
        self._media = media

    def decode(self, final: Tensors) -> Media:
        return self._media


def measured(
    measures: dict[str, Reward], media: Media, prompts: tuple[Prompt, ...]
) -> dict[str, float]:
    """An evaluation whose samples are given."""
    evaluate = Evaluator(
        sampler=lambda **_: ToyCanvasSampler(), prompts=prompts, metrics=measures, rewards={},
        seed=0, num_generations=1, rollout_batch_size=12, runtime=Runtime("cpu"),
    )  # fmt: skip
    return evaluate(Drawn(media)).metrics


@pytest.mark.parametrize("make", [
    list, tuple, deque, np.array, torch.tensor, np.float32, lambda v: torch.tensor(v).half(),
    lambda v: [np.float64(x) for x in v], lambda v: [torch.tensor(x) for x in v],
    lambda v: [Fraction(x) for x in v], lambda v: np.int8([round(2 * x) for x in v]),
])  # fmt: skip
def test_numbers_of_every_library_are_numbers(make: Callable[[list[float]], Any]) -> None:
    values = [i / 2 for i in range(12)]
    prompts = prompts_of(12)
    made = make(values)
    factor = 2 if getattr(made, "dtype", None) == np.int8 else 1
    found = score_rewards("mine", Odd(lambda _: made), Media("text", texts=("",) * 12), prompts)
    assert found.tolist() == [factor * value for value in values]
    absent = score_rewards(
        "mine", Odd(lambda n: [None] * n), Media("text", texts=("",) * 12), prompts
    )
    assert absent.isnan().all()


@pytest.mark.parametrize(
    "summary", [[1.0], {0: 1.0}, {"a": None}, {"a": "1"}, {"a": 10**400}, {"a": True}, 1.0]
)
def test_a_summary_that_is_no_mapping_to_numbers_is_refused(summary: Any) -> None:
    odd = Odd(list)
    odd.summary = lambda *_: summary  # type: ignore[method-assign]
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        measured({"mine": odd}, Media("text", texts=("",)), (Prompt("0", "x"),))
    assert isinstance(caught.value, RewardError), repr(caught.value)
    assert "measure 'mine'" in str(caught.value)
    odd.summary = lambda *_: {"": np.float32(2), "b": 3}  # type: ignore[method-assign]
    found = measured({"mine": odd}, Media("text", texts=("",)), (Prompt("0", "x"),))
    assert found == {"mine": 2.0, "mine/b": 3.0}


@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (lambda x: x.flatten().tolist(), "is a list: expected a tensor of floats"),
        (lambda x: x.flatten().to(torch.complex64), "is a torch.complex64: expected"),
        (lambda x: sys.exit(0), "raised SystemExit: 0"),
    ],
)
def test_a_gradient_that_is_no_tensor_of_floats_is_named(
    gradient: Callable[[Any], Any], said: str
) -> None:
    pixels = torch.ones(3, 1, 1, 1, requires_grad=True)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        reward_gradient("odd", Odd(gradient), pixels, prompts_of(3))
    assert isinstance(caught.value, RewardError), repr(caught.value)
    assert said in str(caught.value) and "'odd'" in str(caught.value)
