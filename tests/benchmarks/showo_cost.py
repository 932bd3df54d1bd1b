"""Memory and time of the recipes of Show-o and aMUSEd, derived and not measured.

    python tests/benchmarks/showo_cost.py            # the table, from showo_cost.json
    python tests/benchmarks/showo_cost.py --derive   # count again (minutes), into showo_cost.json
    python tests/benchmarks/showo_cost.py --write    # put the figures where they are stated: the
                                                     # recipes' comments and recipes/README.md

``--derive`` runs GenRL's own sampler, policy and backward pass on the full-size networks with
tensors that have shapes and no contents (``FakeTensorMode``), and counts what lives at the same
time and every product (``torch.utils.flop_counter``). Attention is counted as a kernel that does
not keep its scores, which is what runs on a GPU. The rest is arithmetic on the recipe.

Left out: the reward's seconds (its weights are counted), evaluations, the allocator's slack (allow
a tenth), and prompts shorter than 129 ids, which cost less.
"""

import argparse
import json
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from genrl_core import Terms, Trajectory, load_recipe
from genrl_core.loop.weights import WeightSets
from genrl_core.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).with_suffix(".json")
RECIPES = ROOT / "recipes" / "masked"
SPEED = {"bfloat16": 300e12, "float32": 40e12}
"""Products a second, assumed of one H100: 30 % of its bfloat16 peak, 60 % of its float32 one."""
GB, PFLOP = 1e9, 1e15
aten = torch.ops.aten


class Meter(TorchDispatchMode):
    """What lives now and at most, in bytes, and the products so far, by dtype.

    Questions that only contents could answer get the answer that costs most: no padding is shared,
    and of R prompts as many differ as groups of ``group`` rows can have. The largest of some
    numbers, which is how an update counts the positions it needs, is ``needed``.
    """

    def __init__(self, group: int, needed: int):
        super().__init__()
        self.group, self.needed, self.live, self.peak = group, needed, 0, 0
        self.flops: dict[str, float] = {}
        self._known: set[int] = set()
        self._largest: Any = None

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self.needed if args[0] is self._largest else 0
        if func is aten.unique_dim.default:
            return self._unique(args[0])
        out = func(*args, **kwargs)
        if func is aten.max.default:
            self._largest = out
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            first = next(a for a in tree_iter(args) if isinstance(a, Tensor))
            name = str(first.dtype).removeprefix("torch.")
            self.flops[name] = self.flops.get(name, 0) + count(*args, **kwargs, out_val=out)
        for found in tree_iter(out):
            if isinstance(found, Tensor):
                self.hold(found)
        return out

    def _unique(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = math.ceil(len(rows) / self.group)
        return rows[:count].clone(), rows.new_zeros(len(rows)), rows.new_zeros(count)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *,
    is_causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Attention as the memory-efficient kernel counts and keeps it; the mask is small."""
    del attn_mask
    found: Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, torch.is_grad_enabled(), 0.0, is_causal, scale=scale
    )[0]
    return found


@contextmanager
def metered(group: int, needed: int) -> Iterator[Meter]:
    """Everything inside runs on shapes alone."""
    swapped = mock.patch("genrl_models.attention.scaled_dot_product_attention", _fused)
    still = mock.patch.object(nn.Module, "to", lambda self, *_, **__: self)  # peft moves adapters
    with swapped, still, FakeTensorMode(), Meter(group, needed) as meter:
        yield meter


def policy_of(recipe: Recipe, layers: int | None = None) -> Any:
    """The recipe's policy of full size, or of fewer layers, without files."""
    return {"ShowoConfig": _showo, "AmusedConfig": _amused}[type(recipe.policy).__name__](
        recipe.policy, layers
    )


def num_tokens_of(recipe: Recipe) -> int:
    """N of the published weights."""
    return 1024 if "512" in str(recipe.policy.weights) else 256  # type: ignore[union-attr]


def _showo(config: Any, layers: int | None) -> Any:
    from genrl_masked import MaskedPolicy
    from genrl_showo.layout import Vocabulary
    from genrl_showo.network import ShowoNetwork
    from genrl_showo.policy import ShowoPolicy
    from genrl_showo.weights import phi_settings

    class Unloaded(ShowoPolicy):
        def __init__(self) -> None:
            network = ShowoNetwork(
                phi_settings(layers=layers or 24), Vocabulary(), attention="sdpa",
                autocast=config.precision == "bfloat16", recompute=config.gradient_checkpointing,
            )  # fmt: skip
            self.vocabulary = network.vocabulary
            count = 1024 if "512" in config.weights else 256
            MaskedPolicy.__init__(self, config, network.eval(), count, 8192)
            self._kept, self._keeps = None, False

        def _prefix_of(self, prompt: Tensor) -> Any:
            """The prompts of a count are always the same; their contents cannot be compared."""
            return None if self._kept is None or torch.is_grad_enabled() else self._kept[1]

    return Unloaded()


def _amused(config: Any, layers: int | None) -> Any:
    from diffusers import UVit2DModel

    from genrl_amused.attention import AmusedAttention
    from genrl_amused.policy import AmusedPolicy
    from genrl_amused.recompute import recompute_layers
    from genrl_masked import MaskedPolicy

    class Unloaded(AmusedPolicy):
        def __init__(self) -> None:
            network = UVit2DModel(sample_size=16, num_hidden_layers=layers or 22).eval()
            network.set_attn_processor(AmusedAttention("sdpa"))
            if config.gradient_checkpointing:
                recompute_layers(network.transformer_layers)
            MaskedPolicy.__init__(self, config, network, 256, 8192)
            self.mask_id, self._side, self._micro = 8255, 16, (256, 256, 0, 0, 6.0)

    return Unloaded()


def cond_of(recipe: Recipe, rows: int) -> dict[str, Tensor]:
    """What ``encode`` gives, for ``rows`` samples."""
    if type(recipe.policy).__name__ == "ShowoConfig":
        ids = torch.zeros(rows, 129, dtype=torch.long)
        return {"prompt": ids, "negative": ids}
    hidden, pooled = torch.zeros(rows, 77, 768), torch.zeros(rows, 768)
    return {
        "hidden": hidden,
        "pooled": pooled,
        "negative_hidden": hidden,
        "negative_pooled": pooled,
    }


class _Shapes:
    """In the place of random streams."""

    def __init__(self, rows: int):
        self.rows = rows

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(self.rows, *shape)

    gumbel = uniform


@dataclass(frozen=True)
class Counted:
    """One network of one recipe's settings, by counting.

    Attributes:
        parameters, trained: numbers of them.
        drawing, updating: bytes beyond the weights, and for an update their gradients, at most.
        draw_flops, update_flops: by dtype, of one row; a drawn row has its prompt read already.
        needed: the positions that an updated row needed, at most.
    """

    parameters: int
    trained: int
    drawing: float
    updating: float
    draw_flops: dict[str, float]
    update_flops: dict[str, float]
    needed: int


def positions(recipe: Recipe) -> list[int]:
    """How many positions the density of each trained step needs; of all steps where chosen anew."""
    count = num_tokens_of(recipe)
    sampler: Any = recipe.sampler
    if _view(recipe) == "elbo":
        return [count]
    released = sampler.build().counts(count)
    masked = [count - sum(released[:step]) for step in range(len(released))]
    found = list(released) if sampler.transition == "p2" else masked
    if sampler.granularity == "token":
        found = [max(released)] * len(found)
    return found[: recipe.train.steps.count] if recipe.train.steps.choose == "first" else found


def key_of(recipe: Recipe) -> str:
    """What the count depends on."""
    sampler, train, lora = recipe.sampler, recipe.train, recipe.weights.lora
    transition = getattr(sampler, "transition", "random").replace("p1_plain", "p1")
    scored = "elbo" if _view(recipe) == "elbo" else transition
    scored += " by token" if getattr(sampler, "granularity", "") == "token" else ""
    adapters = f", rank {lora.rank}" if lora else ""
    return (
        f"{_name(recipe)} {num_tokens_of(recipe)}, {transition} drawn by "
        f"{train.rollout_batch_size}, {scored} updated by {train.micro_batch_size}{adapters}"
    )


def _name(recipe: Recipe) -> str:
    return type(recipe.policy).__name__.removesuffix("Config").lower()


def _view(recipe: Recipe) -> str:
    views = {objective.view_wanted() for objective in recipe.objective.values()} - {None}
    return str(views.pop())


def counted(recipe: Recipe, layers: int | None = None, needed: int | None = None) -> Counted:
    """Count an update's forward and backward pass, and a step of an evaluation's drawing.

    ``needed`` positions of every updated row are needed; silent: the most that a step needs.
    """
    import transformers.models.phi.modeling_phi  # noqa: F401  # not to be imported under the mode

    train = recipe.train
    needed = max(positions(recipe)) if needed is None else needed
    with metered(train.num_generations, needed) as meter:
        policy = policy_of(recipe, layers)
        trained = list(WeightSets(policy, recipe.weights.lora).trainable.values())
        for parameter in policy.network.parameters():
            meter.hold(parameter.data)
        start, meter.peak = meter.live, meter.live
        draw_flops = _draw(recipe, policy, meter)
        drawing = meter.peak - start
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        base, meter.peak, meter.flops = meter.live, meter.live, {}
        scored = _scores(recipe, policy)
        torch.autograd.backward([scored.sum()])
        return Counted(
            sum(p.numel() for p in policy.network.parameters()), sum(p.numel() for p in trained),
            drawing, meter.peak - base, draw_flops,
            {name: count / train.micro_batch_size for name, count in meter.flops.items()}, needed,
        )  # fmt: skip


@torch.no_grad()
def _draw(recipe: Recipe, policy: Any, meter: Meter) -> dict[str, float]:
    """A step as evaluations take it, with guidance if they have it; the products of a row of it."""
    rows, sampler = recipe.train.rollout_batch_size, recipe.sampler_for().build()
    cond = cond_of(recipe, rows)
    shape = (rows, policy.num_tokens)
    state = {"tokens": torch.zeros(shape, dtype=torch.long), "masked": torch.ones(shape).bool()}
    k = torch.zeros(rows, dtype=torch.long)
    with policy.prefill(cond):
        for _ in range(2):  # the second finds the prompts read
            meter.flops = {}
            transition = sampler.transition(policy, state, k, cond)
            action = transition.sample(_Shapes(rows))
            transition.log_prob(action)
            del transition, action
    calls = rows * _calls(recipe.sampler_for())
    return {name: count / calls for name, count in meter.flops.items()}


def _calls(sampler: Any) -> int:
    return 1 if sampler.guidance_scale == 1 else 2


def _scores(recipe: Recipe, policy: Any) -> Tensor:
    """The numbers that an update differentiates, of one chunk of rows."""
    rows, count = recipe.train.micro_batch_size, policy.num_tokens
    cond = cond_of(recipe, rows)
    tokens = torch.zeros(rows, count, dtype=torch.long)
    if _view(recipe) == "elbo":
        masked = torch.ones(rows, count, dtype=torch.bool)
        corruption = {"masked": masked}
        if policy.config.elbo.masking == "complement":
            corruption["ratio"] = torch.ones(rows, dtype=torch.float64)
        found: Tensor = policy.elbo({"tokens": tokens}, cond, corruption)
        return found
    sampler: Any = recipe.sampler.build()  # type: ignore[union-attr]
    steps = sampler.num_steps
    trace = {"tokens": tokens, "commit_step": tokens.clone()}
    if recipe.sampler.transition != "p2":  # type: ignore[union-attr]
        trace["codes"] = torch.zeros(rows, steps, count, dtype=torch.int32)
        trace["thresholds"] = torch.zeros(rows, steps, count)
    if recipe.sampler.transition == "ar":  # type: ignore[union-attr]
        del trace["thresholds"]
    nothing = torch.zeros(1, rows)
    terms = Terms(nothing, nothing.long(), nothing.long(), nothing.bool(), 1)
    k = torch.zeros(rows, dtype=torch.long)
    trajectory = Trajectory(cond, trace, {"tokens": tokens}, terms)
    densities, action = sampler.densities(policy, trajectory, k, k.clone())
    scores: Tensor = densities.log_prob(action)
    return scores


@dataclass(frozen=True)
class Cost:
    """Of one iteration on one card, and of the whole run."""

    gigabytes: float
    draw: float
    update: float
    seconds: float
    iterations: int

    def comment(self) -> str:
        """As it stands in the recipe."""
        hours = self.seconds * self.iterations / 3600
        return (
            "# Derived, not measured (tests/benchmarks/showo_cost.py): "
            f"{self.gigabytes:.0f} GB; {self.draw / PFLOP:.2g} PFLOP to draw and\n"
            f"# {self.update / PFLOP:.2g} to update; {_time(self.seconds)} an iteration and "
            f"{hours:.0f} h in all on one H100 at "
            f"{SPEED['bfloat16'] / 1e12:.0f} TFLOP/s ({SPEED['float32'] / 1e12:.0f} in float32).\n"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def cost_of(recipe: Recipe, counts: dict[str, Any]) -> Cost:
    """The arithmetic from a recipe and the counts of ``showo_cost.json``."""
    count = Counted(**counts[key_of(recipe)])
    train, steps = recipe.train, recipe.sampler.num_inference_steps  # type: ignore[union-attr]
    samples = train.num_prompts * train.num_generations
    again = 1 / (1 - (recipe.filter.std_percentile or 0) / 100)
    calls = samples * again * steps * _calls(recipe.sampler)
    draw = {name: calls * each for name, each in count.draw_flops.items()}
    side = math.isqrt(num_tokens_of(recipe)) * 16
    decode = counts["networks"]["decode flops a pixel"] * side**2
    draw["float32"] = draw.get("float32", 0) + samples * again * decode
    update = _update(
        recipe, count, samples, counts["a position of an update"].get(_name(recipe), {})
    )
    seconds = sum(f / SPEED[name] for part in (draw, update) for name, f in part.items())
    return Cost(
        _bytes(recipe, count, counts["networks"]) / GB, sum(draw.values()), sum(update.values()),
        seconds, train.iterations,
    )  # fmt: skip


def _update(
    recipe: Recipe, count: Counted, samples: int, position: dict[str, float]
) -> dict[str, float]:
    """Products of all updates: trained rows, and those that older weights or a leaf are asked for.

    In the view ``steps`` the old numbers are the rollout's. In ``elbo`` they are computed for
    every update; where draws are combined, the current ones too before the second and later ones.
    Steps that need fewer positions spare the last layer and the head of the others.
    """
    train = recipe.train
    reference = "kl" in recipe.objective
    if _view(recipe) == "steps":
        rows = samples * (train.steps.count or recipe.sampler.num_inference_steps)  # type: ignore[union-attr]
        trained, read = rows * train.num_updates, rows * reference
    else:
        trained = samples * train.draws * train.num_updates
        again = recipe.policy.elbo.combine * (1 - 1 / train.num_updates)  # type: ignore[union-attr]
        read = trained * (1 + reference + again)
    mean = sum(positions(recipe)) / len(positions(recipe))
    spared = {name: (count.needed - mean) * each for name, each in position.items()}
    found = {name: trained * (f - spared.get(name, 0)) for name, f in count.update_flops.items()}
    for name, each in count.draw_flops.items():
        found[name] = found.get(name, 0) + read * each
    return found


def _bytes(recipe: Recipe, count: Counted, networks: dict[str, float]) -> float:
    """At most, in a rollout or an update: what always lies there and what comes and goes."""
    copies = 2 if "kl" in recipe.objective and recipe.weights.lora is None else 1
    still = 4 * count.parameters * copies + 8 * count.trained
    used = [f"{_name(recipe)} decoder", *(type(r).__name__ for r in recipe.reward.values())]
    used += [type(metric).__name__ for metric in recipe.metrics.values()]
    still += sum(networks[each] for each in used)
    return still + max(count.drawing, 4 * count.trained + count.updating)


def _tower(width: int, layers: int, heads: int = 16) -> dict[str, int]:
    """The sizes of a transformer, as transformers' configs call them."""
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }  # fmt: skip


def networks() -> dict[str, float]:
    """Bytes of the frozen networks, float32, and what a decoder computes for a pixel."""
    from diffusers import VQModel
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
    )

    from genrl_showo.magvit import MagvitV2

    def clip(text: dict[str, int], vision: dict[str, int]) -> CLIPModel:
        settings = CLIPConfig(
            text_config=text, vision_config=vision | {"patch_size": 14},
            projection_dim=text["hidden_size"],
        )  # fmt: skip
        return CLIPModel(settings)

    detector = Mask2FormerConfig(
        backbone_config=SwinConfig(
            depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    )  # fmt: skip
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    with torch.device("meta"):
        magvit = MagvitV2()
        parts: dict[str, list[nn.Module]] = {
            "showo decoder": [magvit],
            "ClipScoreConfig": [clip(_tower(1024, 24), _tower(1280, 32))],
            "GenEvalConfig": [
                clip(_tower(768, 12, heads=12), _tower(1024, 24)),
                Mask2FormerForUniversalSegmentation(detector),
            ],
        }
        vq: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * 5,
            "up_block_types": ("UpDecoderBlock2D",) * 5,
            "block_out_channels": (128, 256, 256, 512, 768),
        }
        parts["amused decoder"] = [
            VQModel(**vq, layers_per_block=2, latent_channels=64, num_vq_embeddings=8192,
                    lookup_from_codebook=True, mid_block_add_attention=False),
            CLIPTextModelWithProjection(text),
        ]  # fmt: skip
    found = {
        name: 4.0 * sum(p.numel() for module in modules for p in module.parameters())
        for name, modules in parts.items()
    }
    with FakeTensorMode(), Meter(1, 0) as meter:
        MagvitV2().decoder(torch.zeros(1, 13, 16, 16))
        found["decode flops a pixel"] = sum(meter.flops.values()) / 256**2
    return found


SMALL = ("showo_mask_grpo", "showo_unigrpo", "amused_mask_grpo")
"""Recipes that are also counted with two layers, so that a test can do it again."""


def small(name: str, needed: int | None = None) -> Counted:
    """A recipe of two layers and few rows, counted."""
    few = ("train.micro_batch_size=2", "train.rollout_batch_size=2")
    return counted(load_recipe(f"masked/{name}", few), layers=2, needed=needed)


def position(name: str) -> dict[str, float]:
    """The products that a position costs an updated row, in the last layer and the head."""
    whole, half = small(name, 1024).update_flops, small(name, 512).update_flops
    return {dtype: (whole[dtype] - half[dtype]) / 512 for dtype in whole}


def names() -> list[str]:
    """The recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def derive(say: Callable[[str], None]) -> dict[str, Any]:
    """All counts, as ``showo_cost.json`` holds them."""
    found: dict[str, Any] = {"networks": networks()}
    for name in SMALL:
        found[f"small {name}"] = vars(small(name))
    found["a position of an update"] = {"showo": position("showo_mask_grpo")}
    for name in names():
        recipe = load_recipe(f"masked/{name}")
        if key_of(recipe) not in found:
            say(f"counting {key_of(recipe)}")
            found[key_of(recipe)] = vars(counted(recipe))
            FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    return found


README = ROOT / "recipes" / "README.md"
BETWEEN = ("<!-- showo cost: begin -->\n", "\n<!-- showo cost: end -->")
COMMENT = re.compile(r"# Derived, not measured[^\n]*\n#[^\n]*\n")


def write(counts: dict[str, Any]) -> None:
    """Put every recipe's figures under its first comment, in the place of older ones."""
    for name in names():
        path = RECIPES / f"{name}.yaml"
        text = COMMENT.sub("", path.read_text())
        lines = text.splitlines(keepends=True)
        after = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        lines.insert(after, cost_of(load_recipe(f"masked/{name}"), counts).comment())
        path.write_text("".join(lines))
    begin, end = BETWEEN
    before, found, rest = README.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    assert found and closed, f"{README} has lost the marks of the table"
    README.write_text(before + begin + table(counts) + end + after)


def table(counts: dict[str, Any]) -> str:
    """One row per recipe."""
    rows = [
        "| recipe | GB | PFLOP draw | PFLOP update | an iteration | H100 hours |",
        "|-|-|-|-|-|-|",
    ]
    for name in names():
        cost = cost_of(load_recipe(f"masked/{name}"), counts)
        hours = cost.seconds * cost.iterations / 3600
        rows.append(
            f"| `{name}` | {cost.gigabytes:.0f} | {cost.draw / PFLOP:.2g} | "
            f"{cost.update / PFLOP:.2g} | {_time(cost.seconds)} | {hours:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--derive", action="store_true", help="count again, which takes minutes")
    parser.add_argument(
        "--write", action="store_true", help="rewrite the figures that recipes state"
    )
    given = parser.parse_args()
    if given.derive:
        found = derive(lambda line: print(line, file=sys.stderr, flush=True))
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    counts = json.loads(FIGURES.read_text())
    if given.write:
        write(counts)
    print(table(counts))


if __name__ == "__main__":
    main()
