"""An iteration of Mask-GRPO on a tiny Show-o: GenRL against the paper's released implementation.

    python tests/benchmarks/showo_speed.py [--reference CHECKOUT] [CASE ...]

The same weights, prompt, steps, group size and threads on both sides, in one process, in turns;
neither decodes, and the same function of the codes is the reward. CHECKOUT is a
checkout of Mask-GRPO at e7d6456 (see README.md); without it GenRL alone is measured. First the two
are compared in numbers: on trajectories of theirs, log-densities and gradients. Writes
showo_speed.json, with the table of README.md between its markers.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import HERE, provenance
from showo_reference import Records, Released, normalised
from torch import Tensor

from genrl_core import Media, Plan, Tensors, Trajectory, load_recipe, select_rows
from genrl_core.loop.trainer import Trainer
from genrl_core.recipe.prompts import load_prompts
from genrl_core.run.assembly import build_trainer
from genrl_masked import ConfidenceConfig
from genrl_masked.sampler import ConfidenceSampler
from genrl_showo.layout import Vocabulary
from genrl_showo.magvit import MagvitLayout, random_magvit, save_magvit
from genrl_showo.network import ShowoNetwork
from genrl_showo.weights import phi_settings

THREADS = 2


@dataclass(frozen=True)
class Case:
    """One model and what is done with it.

    Attributes:
        text, codes, num_tokens, max_text: of the sequence; see ``genrl_showo.layout``.
        width, layers, heads: of Phi; the MLP is four times as wide.
        group_size, steps: G and T, all of them trained.
        words: how many words the prompt has.
        candidate: what the released YAML says: 1 for p1, which the boolean threshold makes p2.
        transition: ours.
    """

    text: int = 50295
    codes: int = 8192
    num_tokens: int = 64
    max_text: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    group_size: int = 8
    steps: int = 8
    words: int = 12
    candidate: int = 1
    transition: str = "p2"
    rows: int = 24
    samples: int = 512


SMALL = {"text": 1081, "codes": 128, "steps": 4}
"""A vocabulary in the proportion of the real model: the head is a tenth of the layers."""
LARGE = {"text": 1081, "codes": 128, "steps": 2, "num_tokens": 256}
HUGE = {
    "text": 475, "codes": 128, "steps": 2, "num_tokens": 1024, "width": 128, "heads": 2,
}  # fmt: skip
CASES = {
    "64 tokens": Case(**SMALL),
    "64 tokens, ours by p1": Case(**SMALL, transition="p1"),
    "64 tokens, group of 16": Case(**SMALL, group_size=16),
    "64 tokens, published vocabulary": Case(width=128, heads=2, steps=2),
    "64 tokens, prompt of 126 words": Case(**SMALL, words=126),
    "256 tokens": Case(**LARGE),
    "256 tokens, prompt of 126 words": Case(**LARGE, words=126),
    "1,024 tokens, prompt of 126 words": Case(**HUGE, words=126),
}
"""What is measured."""

COMPARED = {
    "64 tokens": CASES["64 tokens"],
    "64 tokens, p2 in their YAML too": replace(CASES["64 tokens"], candidate=2),
    "256 tokens, prompt of 126 words": CASES["256 tokens, prompt of 126 words"],
}
"""On trajectories of these both sides' numbers are compared."""


def prompt_of(case: Case) -> str:
    return " ".join(f"w{index}" for index in range(1, case.words + 1))


def write_model(case: Case, folder: Path) -> None:
    """A Show-o with random weights in the published layout, and its two tokenizers."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0} | {f"w{index}": index for index in range(1, case.text)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder / "text")
    bits = case.codes.bit_length() - 1
    save_magvit(random_magvit(MagvitLayout(width=4, norm_groups=2, bits=bits)), folder / "image")
    vocabulary = Vocabulary(case.text, case.codes, 0)
    settings = phi_settings(
        vocabulary=vocabulary.size, width=case.width, mlp=4 * case.width, heads=case.heads,
        layers=case.layers,
    )  # fmt: skip
    torch.manual_seed(0)
    network = ShowoNetwork(settings, vocabulary, autocast=False, recompute=False)
    with torch.no_grad():
        network.showo.lm_head.weight.mul_(5)  # confidences that differ
    save_file(network.state_dict(), folder / "pytorch_model.safetensors")
    stated = {
        "codebook_size": case.codes, "llm_vocab_size": case.text,
        "num_vq_tokens": case.num_tokens, "mask_token_id": vocabulary.mask,
        "vocab_size": vocabulary.size, "w_clip_vit": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "prompts.txt").write_text(prompt_of(case) + "\n")


def shades(tokens: Tensor) -> Tensor:
    """In the place of MAGVIT-v2, whose share of an iteration of so few steps would be too large."""
    return (tokens % 256).to(torch.uint8)[:, None, None].expand(-1, 3, 1, -1)


def brightness(pixels: Tensor) -> Tensor:
    """The reward: ``[B, 3, H, W]`` uint8 to ``[B]`` float64."""
    return pixels.double().mean((1, 2, 3))


def sampler_of(case: Case) -> dict[str, Any]:
    return {
        "num_inference_steps": case.steps, "transition": case.transition,
        "gumbel_decay": "cumulative", "final_step": "keep_one",
    }  # fmt: skip


def ours(case: Case, folder: Path, sampler: ConfidenceSampler | None = None) -> Trainer:
    recipe = load_recipe({
        "policy": {
            "use": "showo", "weights": str(folder), "text_tokenizer": str(folder / "text"),
            "image_tokenizer": str(folder / "image"), "max_text_tokens": case.max_text,
        },
        "sampler": {"use": "confidence", **sampler_of(case)},
        "objective": {"grpo": {"epsilon": 0.1, "epsilon_high": 0.2}},
        "prompts": {"file": str(folder / "prompts.txt")},
        "train": {
            "iterations": 1, "num_prompts": 1, "num_generations": case.group_size,
            "learning_rate": 3e-6, "weight_decay": 0.02, "max_grad_norm": None,
            "drift_tolerance": 0.1, "micro_batch_size": case.rows,
            "rollout_batch_size": case.samples,
        },
        "run": {"threads": THREADS, "device": "cpu"},
    })  # fmt: skip
    rewards = {"brightness": lambda media, _: brightness(media.pixels).tolist()}
    trainer = build_trainer(recipe, sampler=sampler, rewards=rewards)
    trainer.parts.policy.decode = lambda final: Media("image", shades(final["tokens"]))
    return trainer


def theirs(case: Case, folder: Path, trainer: Trainer, checkout: Path) -> Released:
    from transformers import AutoTokenizer

    network = trainer.parts.policy.network
    return Released(
        checkout, network.showo.config, network.state_dict(),
        AutoTokenizer.from_pretrained(folder / "text"), case, case.group_size, case.steps,
        case.candidate,
    )  # fmt: skip


class Replayed(ConfidenceSampler):
    """Follows a trajectory of theirs where it would draw one."""

    def __init__(self, case: Case, records: Records):
        super().__init__(ConfidenceConfig(**sampler_of(case)))
        self._actions = actions_of(case, records)

    def rollout(self, policy: Any, cond: Tensors, plan: Any, grad_steps: int = 0) -> Trajectory:
        return self.walk(policy, cond, plan, self._actions, grad_steps)


def actions_of(case: Case, records: Records) -> list[Tensors]:
    """Their lists as our actions, step by step."""
    found = []
    for step in range(case.steps):
        released = torch.zeros_like(records.tokens, dtype=torch.bool)
        for sample, indices in enumerate(records.indices):
            released[sample, indices[step]] = True
        found.append({"codes": records.tokens, "released": released})
    return found


def compared(case: Case, folder: Path, checkout: Path) -> dict[str, float]:
    """Both sides' log-densities and gradients on one trajectory of theirs, same weights.

    Theirs is its loss with the division by T that belongs there, once; ours is what an iteration of
    the trainer leaves in the parameters.
    """
    ref = theirs(case, folder, ours(case, folder), checkout)
    torch.manual_seed(1)
    records = ref.rollout(prompt_of(case))
    trainer = ours(case, folder, Replayed(case, records))
    with noted_logs() as logs:
        ref.gradient(prompt_of(case), records, normalised(brightness(shades(records.tokens))), 1.0)
    densities = torch.stack([one.sum(1) for one in logs[:: 3 - case.candidate]])
    remasked = [one.sum(1).abs().max() for one in logs[1::2]] if case.candidate == 1 else [0.0]
    with torch.no_grad():
        trajectory = trainer.parts.sampler.rollout(
            trainer.parts.policy, *replay_inputs(trainer, case, folder)
        )
    mine, drift = gradient_of_a_step(trainer)
    other = {name: parameter.grad.double() for name, parameter in ref.model.named_parameters()}
    own, their = (torch.cat([side[n].flatten() for n in other]) for side in (mine, other))
    gap = max(float((mine[n] - one).abs().max() / one.abs().max()) for n, one in other.items())
    return {
        "log_density_gap": float((trajectory.terms.log_probs - densities).abs().max()),
        "log_density_size": float(densities.abs().max()),
        "their_remask_term": float(max(remasked)),
        "gradient_gap": float((own - their).norm() / their.norm()),
        "gradient_gap_of_the_worst_tensor": gap,
        "gradient_norm": float(their.norm()),
        "drift": drift,
    }


def gradient_of_a_step(trainer: Trainer) -> tuple[Tensors, float]:
    """What the optimizer is given, in float64, and the drift."""
    found: Tensors = {}

    def note(*_: object) -> None:
        parameters = trainer.parts.policy.network.named_parameters()
        found.update({name: parameter.grad.double() for name, parameter in parameters})

    trainer.parts.optimizer.register_step_pre_hook(note)
    drift = trainer.step().metrics["drift"]
    return found, drift


def replay_inputs(trainer: Trainer, case: Case, folder: Path) -> tuple[Tensors, Plan]:
    prompts = load_prompts(folder / "prompts.txt")
    group = torch.zeros(case.group_size, dtype=torch.int64)
    plan = Plan(0, 0, 0, tuple(prompts), group, torch.arange(case.group_size))
    return select_rows(trainer.parts.policy.encode(prompts), group), plan


@contextmanager
def noted_logs() -> Iterator[list[Tensor]]:
    """What ``torch.log`` gives meanwhile: in their loss, log-probabilities of the released."""
    found: list[Tensor] = []
    log = torch.log

    def noting(given: Tensor) -> Tensor:
        found.append(log(given))
        return found[-1]

    torch.log = noting
    try:
        yield found
    finally:
        torch.log = log


def measure(case: Case, folder: Path, checkout: Path | None, repeat: int) -> dict[str, Any]:
    """In turns, after one iteration of each that does not count."""
    trainer = ours(case, folder)
    sides: dict[str, Callable[[], tuple[float, float]]] = {"ours": lambda: own_seconds(trainer)}
    if checkout:
        ref = theirs(case, folder, trainer, checkout)
        sides["theirs"] = lambda: ref.iteration(
            prompt_of(case), shades, brightness, time.perf_counter
        )
    rows: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
    for _ in range(repeat + 1):
        for side, iterate in sides.items():
            start = time.process_time()
            rollout, update = iterate()
            rows[side].append((rollout, update, time.process_time() - start))
    return {side: summary(found[1:]) for side, found in rows.items()}


def own_seconds(trainer: Trainer) -> tuple[float, float]:
    metrics = trainer.step().metrics
    # Log-densities of up to thousands of nats, in float32.
    assert metrics["drift"] < 1e-5 + 2e-6 * abs(metrics["log_probs"]), metrics
    return metrics["seconds_rollout"] + metrics["seconds_reward"], metrics["seconds_update"]


def summary(rows: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Medians in seconds; ``processor`` is that of both threads, which other jobs disturb less."""
    totals = [rollout + update for rollout, update, _ in rows]
    return {
        "rollout": statistics.median(row[0] for row in rows),
        "update": statistics.median(row[1] for row in rows),
        "processor": statistics.median(row[2] for row in rows),
        "total": statistics.median(totals), "fastest": min(totals), "all": totals,
    }  # fmt: skip


def shown(results: Mapping[str, Any]) -> str:
    """The table of README.md: medians in seconds."""
    lines = [
        "| case | rollout | update | iteration | ratio | of processor seconds |",
        "|" + "---|" * 6,
    ]
    for name, row in results["cases"].items():
        own, other = row["ours"], row.get("theirs")
        keys = ("rollout", "update", "total")
        cells = [name, *(f"{own[key]:.2f}" for key in keys), "", ""]
        if other:
            parts = [f"{other[key]:.2f} / {own[key]:.2f}" for key in keys]
            ratios = [f"{other[key] / own[key]:.1f}" for key in ("total", "processor")]
            cells = [name, *parts, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="checkout of Mask-GRPO at e7d6456")
    parser.add_argument("--repeat", type=int, default=5, help="iterations of each side")
    parser.add_argument(
        "--write",
        action="store_true",
        help="showo_speed.json and README.md; named cases are replaced there",
    )
    parser.add_argument("cases", nargs="*", help="names of cases; silent: all")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.reference is None:
        print("no --reference: GenRL alone is measured, and nothing is compared")
    results: dict[str, Any] = {"cases": {}, "equality": {}}
    start = time.perf_counter()
    if given.cases and given.write:
        results = json.loads((HERE / "showo_speed.json").read_text())
    elif given.reference:
        for name, case in COMPARED.items():
            with written(case) as folder:
                results["equality"][name] = compared(case, folder, given.reference)
            print(name, results["equality"][name], flush=True)
    for name in given.cases or CASES:
        with written(CASES[name]) as folder:
            timed = measure(CASES[name], folder, given.reference, given.repeat)
        results["cases"][name] = timed | {"case": asdict(CASES[name]), "load": os.getloadavg()[0]}
        print(shown({"cases": {name: timed}}).splitlines()[-1], flush=True)
        results |= {"torch": torch.__version__, "threads": THREADS, "repeat": given.repeat}
        results |= provenance(" ".join(["python", *sys.argv]), [0], start)
        if given.write:
            publish(results)


@contextmanager
def written(case: Case) -> Iterator[Path]:
    """A folder with the case's model."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(case, Path(folder))
        yield Path(folder)


def equal(results: Mapping[str, Any]) -> str:
    """The table of the comparison in numbers."""
    head = (
        "| case | gap of log-densities, nats | of | gap of the gradient, of its length | of the "
        "worst tensor | what their p1 adds to p2, nats |"
    )
    lines = [head, "|" + "---|" * 6]
    for name, found in results["equality"].items():
        size = f"{found['log_density_size']:.0f}"
        gaps = ("log_density_gap", "gradient_gap", "gradient_gap_of_the_worst_tensor")
        first, *others, last = (f"{found[key]:.0e}" for key in (*gaps, "their_remask_term"))
        remask = last if "their YAML" not in name else ""
        lines.append(f"| {' | '.join([name, first, size, *others, remask])} |")
    return "\n".join(lines)


def publish(results: Mapping[str, Any]) -> None:
    """Write showo_speed.json, and the tables between their markers of README.md."""
    (HERE / "showo_speed.json").write_text(json.dumps(results, indent=1) + "\n")
    path = HERE / "README.md"
    text = path.read_text()
    for name, table in (("speed", shown(results)), ("equality", equal(results))):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}\n{end}{after}"
    path.write_text(text)


if __name__ == "__main__":
    main()
