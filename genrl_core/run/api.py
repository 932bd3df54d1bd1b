"""What a run left behind, and its policy again: for verbs, notebooks and scripts.

from genrl_core.runs import generate, open_run
run = open_run("runs/mask_grpo")
media = generate(run.policy(), run.sampler(), ["a seven"], num=8, seed=0)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from genrl_core.errors import CheckpointError, RecipeError
from genrl_core.interfaces.media import Media, Prompt
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.reward import Reward
from genrl_core.interfaces.sampler import Sampler
from genrl_core.loop.distributed import Runtime
from genrl_core.loop.generate import generate as generate_plan
from genrl_core.loop.generate import score_rewards
from genrl_core.loop.plan import plan_of
from genrl_core.loop.weights import WeightSets, fingerprint
from genrl_core.recipe.problems import raise_if
from genrl_core.recipe.prompts import unread
from genrl_core.recipe.recipe import RESOLVED_FILE, Recipe, load_recipe
from genrl_core.registry import Registry
from genrl_core.run import checkpoint
from genrl_core.run.assembly import train_base
from genrl_core.run.bases import Notify
from genrl_core.run.files import read_jsonl
from genrl_core.run.policies import build_policy

Weights = Literal["last", "ema", "lagging"] | int
"""Which weights of a run: of its newest checkpoint, their average, or those after an iteration."""


def registry(files: Sequence[str | Path] = ()) -> Registry:
    """Everything that the installed plugins registered, and the plugin ``files``."""
    return Registry.discover(files)


def open_run(folder: str | Path, registry: Registry | None = None) -> "Run":
    """A run folder, finished or not.

    Raises:
        RecipeError: it is none.
    """
    path = Path(folder)
    if not (path / RESOLVED_FILE).is_file():
        raise RecipeError(f"{path} is no run folder: it has no {RESOLVED_FILE}")
    return Run(path, load_recipe(path / RESOLVED_FILE, registry=registry))


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        folder: where.
        recipe: as it was resolved.
    """

    folder: Path
    recipe: Recipe

    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per iteration, see ``run.glossary``."""
        return read_jsonl(self.folder / "metrics.jsonl")[0]

    def events(self) -> list[dict[str, Any]]:
        """Warnings, checkpoints, evaluations: ``time``, ``iteration``, ``kind`` and ``message``."""
        return read_jsonl(self.folder / "events.jsonl")[0]

    def samples(self) -> dict[int, list[dict[str, Any]]]:
        """Iteration -> its samples' index: ``prompt_id``, ``prompt`` and, of texts, ``text``."""
        folders = sorted((self.folder / "samples").glob("iter_*"))
        return {
            int(f.name.removeprefix("iter_")): read_jsonl(f / "index.jsonl")[0] for f in folders
        }

    def sampler(self, **overrides: Any) -> Sampler:
        """The sampler of evaluations, with fields overridden."""
        return self.recipe.sampler_for(**overrides).build()

    def policy(self, weights: Weights | None = None, notify: Notify = print) -> Policy:
        """The policy as trained; silent: the average where there is one, else the newest.

        Raises:
            CheckpointError: there are no such weights, or they cannot be read.
        """
        snapshot = self._snapshot(weights if isinstance(weights, int) else None)
        found = snapshot.tensors
        wanted = weights if isinstance(weights, str) else "ema" if "slot_ema" in found else "last"
        group = "policy" if wanted == "last" else f"slot_{wanted}"
        if group not in found:
            raise CheckpointError(f"{snapshot.path} holds no weights {wanted!r}")
        return load_policy(self.recipe, found[group], snapshot.state.get("base", ""), notify)

    def _snapshot(self, iteration: int | None) -> checkpoint.Snapshot:
        skipped: list[str] = []
        for snapshot in checkpoint.snapshots(self.folder, skipped):
            if iteration is None or snapshot.iteration == iteration:
                return snapshot
        found = "; ".join(skipped) or "there is no checkpoint"
        which = "" if iteration is None else f" after iteration {iteration}"
        raise CheckpointError(f"{self.folder} has no valid checkpoint{which}: {found}")


def load_policy(
    recipe: Recipe, tensors: Mapping[str, Tensor] | None = None, base: str = "",
    notify: Notify = print,
) -> Policy:  # fmt: skip
    """The policy of a recipe with its weights, on the run's device.

    Args:
        recipe: whose policy.
        tensors: what was trained, as a checkpoint holds it; None for the policy before training.
        base: the hash of the weights that ``tensors`` were trained beside; empty for any.
        notify: told what goes on.

    Raises:
        RecipeError: the weights are missing or do not fit.
        CheckpointError: ``tensors`` are of another network, or of another base.
    """
    runtime = Runtime(recipe.run.device)
    policy = build_policy(recipe, runtime, partial(train_base, notify=notify), notify)
    if tensors is None:
        return policy
    if base and base != fingerprint(policy.network):
        raise CheckpointError(
            f"the weights under those of {recipe.name} cannot be rebuilt: policy.weights gives "
            "other weights than when the run began"
        )
    weight_sets = WeightSets(policy, recipe.weights.lora, recipe.run.seed)
    try:
        weight_sets.load_state_dict(dict(tensors))
    except ValueError as error:
        raise CheckpointError(f"the checkpoint holds another network: {error}") from error
    return policy


def generate(
    policy: Policy, sampler: Sampler, prompts: Sequence[str | Prompt], num: int = 1, seed: int = 0,
    *, rollout_batch_size: int = 512, notify: Notify = print,
) -> Media:  # fmt: skip
    """``num`` samples of every prompt, prompt by prompt.

    Raises:
        RecipeError: the policy cannot take a prompt.
    """
    asked = [p if isinstance(p, Prompt) else Prompt(str(i), p) for i, p in enumerate(prompts)]
    refused, cuts = unread(asked, {"the policy": partial(sampler.reading, policy)})
    raise_if(refused)
    for cut in cuts:
        notify(cut)
    device = next(policy.network.parameters()).device
    plan = plan_of(seed, 0, 0, asked, num, device)
    return generate_plan(policy, sampler, plan, rollout_batch_size)[1]


def score(
    rewards: Mapping[str, Reward], media: Media, prompts: Sequence[Prompt]
) -> dict[str, list[float | None]]:
    """What rewards say of samples, label by label; None where one does not apply.

    Raises:
        RewardError: a reward failed, or gave something else than numbers.
    """
    found = {n: score_rewards(n, each, media, prompts) for n, each in rewards.items()}
    return {
        name: [None if math.isnan(value) else value for value in values.tolist()]
        for name, values in found.items()
    }
