"""Networks loaded in bfloat16: what is trained is float32, and the forward runs under autocast."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genrl_core.errors import GenRLError, RecipeError
from genrl_core.interfaces.sampler import Transition
from genrl_core.loop.settings import LoraConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.recipe import Recipe
from genrl_core.run import checkpoint
from genrl_core.run.assembly import build_trainer
from genrl_core.run.saving import restore, save
from genrl_core.testing.enumerable import ToyCanvas, ToyCanvasSampler, _CanvasStep

Make = Callable[..., Recipe]
STATES = torch.arange(27)
LORA = LoraConfig(rank=2)
KINDS = pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])


class Net(nn.Module):
    """An embedding, a norm with a frozen bias and a table beside it, and two linear layers."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(27, 16), nn.LayerNorm(16)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 6)
        self.norm.register_buffer("shift", torch.zeros(16))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.3, generator=generator)
        self.norm.bias.requires_grad_(False)
        self.seen: list[torch.dtype] = []

    def forward(self, state: Tensor) -> Tensor:
        hidden = self.first(self.norm(self.embed(state)) + self.norm.get_buffer("shift"))
        self.seen.append(hidden.dtype)
        found: Tensor = self.last(hidden.tanh()).unflatten(-1, (3, 2))
        return found


class Half(ToyCanvas):
    """The toy's canvas under a network that was loaded in bfloat16."""

    lora_targets = ("first", "last")
    dtype = torch.bfloat16
    predicts_value = False

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            self.network: Net = Net().to(self.dtype)  # type: ignore[assignment]

    def log_p(self, canvas: Tensor) -> Tensor:
        logits: Tensor = self.network(self._code(canvas))
        return logits.float().log_softmax(-1)


class Single(Half):
    dtype = torch.float32


def dtypes(weight_sets: WeightSets, name: str) -> set[torch.dtype]:
    return {weight_sets.state_dict(name)[key].dtype for key in weight_sets.trainable}


@KINDS
def test_what_is_trained_averaged_or_lagging_is_float32(lora: LoraConfig | None) -> None:
    policy, loaded = Half(), Half().network.state_dict()
    weight_sets = WeightSets(policy, lora)
    for name in ("reference", "lagging", "ema"):
        weight_sets.snapshot(name)
    for name in ("current", "lagging", "ema"):
        assert dtypes(weight_sets, name) == {torch.float32}, name
    names = ("first", "last")
    own = {n.replace(".base_layer", ""): p for n, p in policy.network.named_parameters()}
    for name, tensor in loaded.items():
        if name in own:
            assert torch.equal(own[name].float(), tensor.float()), "rounded once, and kept"
    if lora is not None:
        assert {own[f"{n}.weight"].dtype for n in names} == {torch.bfloat16}, "the base is frozen"


def test_a_norm_gets_one_type_of_numbers() -> None:
    """Also where a part of it is frozen, or is a buffer."""
    policy = Half()
    WeightSets(policy)
    norm = policy.network.norm
    assert {norm.weight.dtype, norm.bias.dtype, norm.get_buffer("shift").dtype} == {torch.float32}


@pytest.mark.parametrize("kind", [Single, Half])
@KINDS
def test_a_small_step_moves_nearly_every_weight(kind: type[Half], lora: LoraConfig | None) -> None:
    """At a learning rate of 1e-6, in bfloat16 as in float32; rounding alone leaves 0.3 %."""
    weight_sets = WeightSets(kind(), lora)
    optimizer = torch.optim.AdamW(
        weight_sets.trainable.values(), lr=1e-6, weight_decay=0.0, fused=True
    )
    generator = torch.Generator().manual_seed(1)
    moved = [name for name in weight_sets.trainable if "lora_B" not in name]  # those start at 0
    before = {name: weight_sets.trainable[name].detach().clone() for name in moved}
    for _ in range(3):
        for parameter in weight_sets.trainable.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = noise.to(parameter)
        optimizer.step()
    changed = torch.cat([(weight_sets.trainable[n] != before[n]).flatten() for n in moved])
    assert changed.float().mean() > 0.9
    moments = {v.dtype for s in optimizer.state.values() for n, v in s.items() if "avg" in n}
    assert moments == {torch.float32}


@pytest.mark.parametrize("kind", [Single, Half])
@KINDS
def test_an_average_of_decay_999_follows(kind: type[Half], lora: LoraConfig | None) -> None:
    """After n steps towards a constant it is ``constant + .999^n (start - constant)``."""
    weight_sets = WeightSets(kind(), lora)
    weight_sets.snapshot("ema")
    start = {n: t.double().clone() for n, t in weight_sets.state_dict("ema").items()}
    with torch.no_grad():
        for parameter in weight_sets.trainable.values():
            parameter.add_(0.5)
    for _ in range(200):
        weight_sets.ema_update("ema", 0.999)
    for name, parameter in weight_sets.trainable.items():
        target = parameter.detach().double()
        expected = target + 0.999**200 * (start[name] - target)
        found = weight_sets.state_dict("ema")[name].double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_adapters_of_an_embedding_belong_to_their_slot() -> None:
    """peft names them by the slot last, ``embed.lora_embedding_A.current``."""
    policy = Half()
    weight_sets = WeightSets(policy, LoraConfig(rank=2, target_modules=["embed", "last"]))
    weight_sets.snapshot("ema")
    ours, theirs = weight_sets.state_dict("current"), weight_sets.state_dict("ema")
    assert all(ours[key].data_ptr() != theirs[key].data_ptr() for key in weight_sets.trainable)
    assert dtypes(weight_sets, "ema") == {torch.float32}


@KINDS
def test_the_network_alone_runs_under_autocast(lora: LoraConfig | None) -> None:
    policy = Half()
    weight_sets = WeightSets(policy, lora)
    weight_sets.snapshot("ema")
    plain = copy.deepcopy(policy.network)
    for name in ("current", "ema"):
        with weight_sets.using(name):
            policy.network(STATES)
            assert policy.network.seen[-1] == torch.bfloat16, name
            assert not torch.is_autocast_enabled("cpu")
            assert policy.log_p(torch.zeros(2, 3, dtype=torch.int64)).dtype == torch.float32
    with pytest.raises(TypeError):
        policy.network("no state")
    assert not torch.is_autocast_enabled("cpu"), "nor after an error"
    torch.testing.assert_close(plain(STATES), policy.network(STATES), rtol=0, atol=0)


def test_float32_is_left_alone() -> None:
    policy = Single()
    WeightSets(policy)
    assert type(policy.network) is Net
    policy.network(STATES)
    assert policy.network.seen == [torch.float32]


def test_no_cast_outlives_a_step() -> None:
    """Even where somebody else's autocast, which keeps casts, is around all calls."""
    policy = Half()
    weight_sets = WeightSets(policy)
    with torch.autocast("cpu", torch.bfloat16):
        before = policy.network(STATES)
        with torch.no_grad():
            for parameter in weight_sets.trainable.values():
                parameter.mul_(2.0)
        after = policy.network(STATES)
    assert torch.equal(after, policy.network(STATES))
    assert (after - before).abs().max() > 0.1


def test_float16_is_refused_with_what_to_do() -> None:
    policy = Half()
    policy.network.half()
    with pytest.raises(RecipeError, match=r"Net holds weights in float16.*load them in bfloat16"):
        WeightSets(policy)


@pytest.mark.parametrize("more", [[], ["weights.lora={rank: 2}"]], ids=["full", "lora"])
@pytest.mark.parametrize("estimator", ["k3", "analytic"])
def test_the_divergence_begins_at_exactly_0(
    toy_recipe: Make, more: list[str], estimator: str
) -> None:
    """The reference is what the weights were rounded to, through the same casts; then it grows."""
    kl = {"kl": {"weight": 0.1, "estimator": estimator}}
    objective = {"objective": {"grpo": {"epsilon": 0.2}, **kl}}
    recipe = toy_recipe("toy_canvas", "train.micro_batch_size=5", *more, **objective)
    trainer = build_trainer(recipe, policy=Half())
    first, second = (trainer.step().metrics["kl"] for _ in range(2))
    assert first == 0.0
    assert second > 0.0


@pytest.mark.parametrize("more", [[], ["weights.lora={rank: 2}"]], ids=["full", "lora"])
def test_a_resumed_run_is_the_same_and_saved_in_float32(
    toy_recipe: Make, tmp_path: Path, more: list[str]
) -> None:
    recipe = toy_recipe("toy_canvas", "weights.ema={decay: 0.9}", *more)
    straight, first, second = (build_trainer(recipe, policy=Half()) for _ in range(3))
    for _ in range(3):
        straight.step()
    first.step()
    save(first, recipe, tmp_path)
    newest, _ = checkpoint.latest(tmp_path)
    assert newest is not None
    for group in ("policy", "slot_ema"):
        saved = load_file(newest.path / f"{group}.safetensors")
        assert {saved[name].dtype for name in first.weight_sets.trainable} == {torch.float32}
    restore(second, recipe, newest)
    for _ in range(2):
        second.step()
    for name in ("current", "ema"):
        ours, theirs = straight.weight_sets.state_dict(name), second.weight_sets.state_dict(name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


class Rough(ToyCanvasSampler):
    """Scores by a distribution of its own: as sharp as ``sharpness`` says, as rounding is not."""

    def __init__(self, sharpness: float):
        self.sharpness = sharpness

    def transition(self, policy: ToyCanvas, state, k, cond) -> Transition:  # type: ignore[no-untyped-def, override]
        log_p = policy.log_p(state["canvas"])
        if torch.is_grad_enabled():
            log_p = (log_p * self.sharpness).log_softmax(-1)
        return _CanvasStep(log_p, state["canvas"])


def stopped(recipe: Recipe, policy: ToyCanvas, sharpness: float) -> str:
    """What stopped a run's first iteration; empty for nothing."""
    try:
        build_trainer(recipe, policy=policy, sampler=Rough(sharpness)).step()
    except GenRLError as error:
        return str(error)
    return ""


def test_the_drift_that_is_allowed_depends_on_the_precision(toy_recipe: Make) -> None:
    """.01 nats are rounding in bfloat16 and a fault in float32; a forgotten temperature is both."""
    recipe = toy_recipe("toy_canvas")
    assert stopped(recipe, Half(), 1.02) == ""
    assert "train.drift_tolerance is 0.001" in stopped(recipe, Single(), 1.02)
    found = stopped(recipe, Half(), 8.0)
    assert "train.drift_tolerance is 1; the network computes in bfloat16" in found
    assert "temperature" in found
    stated = toy_recipe("toy_canvas", "train.drift_tolerance=1e-4")
    assert "train.drift_tolerance is 0.0001" in stopped(stated, Half(), 1.02)


def test_a_policy_may_say_its_precision(toy_recipe: Make) -> None:
    """One that enters autocast by itself: nothing is wrapped, and the tolerance is bfloat16's."""
    policy = Single()
    policy.precision = torch.bfloat16
    assert stopped(toy_recipe("toy_canvas"), policy, 1.02) == ""
    assert type(policy.network) is Net
