"""Loss values and gradients against TRL's trainers, on random numbers instead of networks."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_core import Batch
from genrl_objectives import (
    OBJECTIVES,
    CispoConfig,
    DapoConfig,
    DpoConfig,
    DrGrpoConfig,
    GmpoConfig,
    GrpoConfig,
    KlConfig,
    RlooConfig,
    SapoConfig,
)
from genrl_objectives.grpo import RatioConfig

CONFIGURATIONS = 240
Rng = torch.Generator


def numbers(rng: Rng, samples: int = 6, terms: int = 7) -> dict[str, Tensor]:
    """Log-probabilities ``[B, T]`` of the policy, of the weights that drew and of a reference."""
    old = -3 * torch.rand(samples, terms, generator=rng, dtype=torch.float64)
    spread = float(torch.rand((), generator=rng)) * 0.8
    lengths = torch.randint(1, terms + 1, (samples,), generator=rng)
    return {
        "new": old + spread * torch.randn(samples, terms, generator=rng, dtype=torch.float64),
        "old": old,
        "reference": old + 0.2 * torch.randn(samples, terms, generator=rng, dtype=torch.float64),
        "advantage": torch.randn(samples, generator=rng, dtype=torch.float64),
        "mask": torch.arange(terms) < lengths.unsqueeze(1),
    }


def batch_of(x: dict[str, Tensor], leaf: Tensor) -> Batch:
    """The same numbers as an objective sees them: samples are columns."""
    mask = x["mask"].T
    ones = torch.ones_like(x["old"].T)
    samples = len(x["old"])
    return Batch(
        log_probs=leaf.T, old_log_probs=x["old"].T, reference=x["reference"].T, mask=mask,
        denominator_mask=mask,
        events=ones.long(), step=torch.arange(len(mask)).unsqueeze(1).expand_as(mask), weight=ones,
        scale=ones, advantage=x["advantage"].expand_as(ones), reward=x["advantage"],
        group=torch.zeros(samples, dtype=torch.int64), valid=torch.ones(samples).bool(),
    )  # fmt: skip


def accelerator() -> SimpleNamespace:
    def same(value: Any, *_: Any, **__: Any) -> Any:
        return value.reshape(-1) if isinstance(value, Tensor) and value.dim() == 0 else value

    return SimpleNamespace(
        num_processes=1, device=torch.device("cpu"), sync_gradients=True, gather=same,
        gather_for_metrics=same, reduce=same, pad_across_processes=same,
    )  # fmt: skip


def theirs(trainer: Any, x: dict[str, Tensor], leaf: Tensor, **settings: Any) -> Tensor:
    """The loss of a TRL trainer whose network said ``leaf``."""
    fields: dict[str, Any] = {
        "loss_type": "grpo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2,
        "importance_sampling_level": "token", "delta": None, "use_bias_correction_kl": True,
        "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "steps_per_generation": 1,
    } | settings  # fmt: skip
    own = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        max_completion_length=leaf.shape[1], current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
        args=SimpleNamespace(**fields), **fields,
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
    )  # fmt: skip
    samples = len(leaf)
    inputs = {
        "prompt_ids": torch.zeros(samples, 1).long(), "prompt_mask": torch.ones(samples, 1).long(),
        "completion_ids": torch.zeros_like(leaf).long(), "completion_mask": x["mask"].long(),
        "advantages": x["advantage"], "num_items_in_batch": x["mask"].sum(),
        "old_per_token_logps": x["old"], "ref_per_token_logps": x["reference"],
        "old_logps": (x["old"] * x["mask"]).sum(1),
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(own, None, inputs)
    return loss


def agree(ours: Tensor, other: Tensor, leaves: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)
    found, expected = (
        torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip((ours, other), leaves, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def leaves_of(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return x["new"].clone().requires_grad_(), x["new"].clone().requires_grad_()


def choose(rng: Rng, options: list[Any]) -> Any:
    return options[int(torch.randint(len(options), (), generator=rng))]


def random_case(rng: Rng, index: int) -> tuple[RatioConfig, dict[str, Any], str | None]:
    """One of our configs, TRL's settings for it, and the estimator of a KL or None.

    TRL multiplies the unbiased KL of a term by the *sample's* ratio at sequence level. That is not
    the ratio of the density that drew the term, so we have no such thing and the KL there is k3.
    """
    loss_type = ("grpo", "dapo", "dr_grpo", "cispo", "sapo")[index % 5]
    sequence = index // 5 % 2 == 1
    level: dict[str, Any] = {"level": "sequence", "over": "mean"} if sequence else {}
    epsilon = choose(rng, [0.1, 0.2, 0.4])
    high = choose(rng, [None, 0.28, 0.6])
    delta = choose(rng, [None, None, 1.3, 2.0])
    clip = {"epsilon": epsilon, "epsilon_high": high, "delta": delta}
    known: dict[str, Any] = {
        "loss_type": loss_type, "importance_sampling_level": "sequence" if sequence else "token",
        "epsilon_low": epsilon, "epsilon_high": epsilon if high is None else high, "delta": delta,
    }  # fmt: skip
    config: RatioConfig
    if loss_type == "cispo":
        known["epsilon_high"] = choose(rng, [1.1, 1.5, 5.0])
        config = CispoConfig.model_validate(level | {"epsilon_high": known["epsilon_high"]})
    elif loss_type == "sapo":
        tau = {"temperature": choose(rng, [0.5, 1.0]), "temperature_negative": 1.05}
        known |= {"sapo_temperature_pos": tau["temperature"], "sapo_temperature_neg": 1.05}
        config = SapoConfig.model_validate(level | tau)
    else:
        preset = {"grpo": GrpoConfig, "dapo": DapoConfig, "dr_grpo": DrGrpoConfig}[loss_type]
        config = preset.model_validate(level | clip)
    kl = choose(rng, [None, "k3"] if sequence else [None, "k3", "unbiased"])
    known["beta"] = 0.0 if kl is None else choose(rng, [0.04, 0.5])
    known["use_bias_correction_kl"] = kl == "unbiased"
    return config, known, kl


def test_policy_gradients_match(trl_trainers: dict[str, Any]) -> None:
    rng = Rng().manual_seed(0)
    seen = set()
    for index in range(CONFIGURATIONS):
        x = numbers(rng)
        config, settings, kl = random_case(rng, index)
        mine, other = leaves_of(x)
        batch = batch_of(x, mine)
        loss = config.build().loss(batch)[0]
        if kl is not None:
            penalty = KlConfig.model_validate({"estimator": kl, "reduce": config.reduce}).build()
            loss = loss + settings["beta"] * penalty.loss(batch)[0]
        agree(loss, theirs(trl_trainers["grpo"], x, other, **settings), (mine, other))
        seen.add((settings["loss_type"], config.level, kl))
    assert len(seen) == 25


# What TRL 1.16 said of one batch (loss, norm of the gradient), so that something holds without it.
GOLDEN = {
    "grpo": (-0.666167, 0.339379), "bnpo": (-0.637587, 0.336820), "dapo": (-0.637587, 0.336820),
    "dr_grpo": (-0.478190, 0.252615), "sapo": (-1.532484, 0.394105),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str) -> None:
    rng = Rng().manual_seed(0)
    old = -3 * torch.rand(4, 6, generator=rng)
    new = (old + 0.3 * torch.randn(4, 6, generator=rng)).requires_grad_()
    reference = old + 0.2 * torch.randn(4, 6, generator=rng)
    advantage = torch.randn(4, generator=rng)
    mask = torch.arange(6) < torch.tensor([6, 4, 3, 5]).unsqueeze(1)
    x = {"old": old, "reference": reference, "advantage": advantage, "mask": mask}
    schema = OBJECTIVES[name]
    config = schema.model_validate({} if name == "sapo" else {"epsilon": 0.2, "delta": None})
    assert isinstance(config, RatioConfig)
    batch = batch_of(x, new)
    kl = KlConfig(reduce=config.reduce).build().loss(batch)[0]
    loss = config.build().loss(batch)[0] + 0.04 * kl
    norm = torch.autograd.grad(loss, new)[0].norm()
    assert (loss.item(), norm.item()) == pytest.approx(GOLDEN[name], abs=2e-6)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["gmpo", "rloo"])
def test_trajectory_ratios_match(trl_trainers: dict[str, Any], name: str, seed: int) -> None:
    rng = Rng().manual_seed(seed)
    x = numbers(rng)
    epsilon, high = choose(rng, [0.2, 0.4]), choose(rng, [None, 0.3])
    clip = {"epsilon": epsilon, "epsilon_high": high, "delta": None}
    schema = GmpoConfig if name == "gmpo" else RlooConfig
    mine, other = leaves_of(x)
    loss = schema.model_validate(clip).build().loss(batch_of(x, mine))[0]
    settings = {"epsilon_low": epsilon, "epsilon_high": high or epsilon}
    agree(loss, theirs(trl_trainers[name], x, other, **settings), (mine, other))


def paired_loss(trainer: Any, x: dict[str, Tensor], leaf: Tensor, **settings: Any) -> Tensor:
    """TRL's DPO loss of pairs: the first half of the rows are the chosen ones."""
    samples, terms = leaf.shape
    zero = torch.zeros(samples, terms)
    kept = torch.where(x["mask"], leaf, torch.zeros_like(leaf))
    said = SimpleNamespace(log_probs=kept, entropy=zero, mean_logits=zero, is_top1=zero.bool())
    score = (x["reference"] * x["mask"]).sum(1)
    own = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=accelerator(), aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, loss_weights=[1.0], **settings,
    )  # fmt: skip
    prompt = torch.zeros(samples, 1).long()
    mask = torch.cat([prompt, x["mask"].long()], 1)
    inputs = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask),
        "completion_mask": mask, "ref_chosen_logps": score[: samples // 2],
        "ref_rejected_logps": score[samples // 2 :],
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(own, lambda **_: said, inputs, False)
    return loss


PAIR_LOSSES = {
    "sigmoid": {}, "ipo": {"over": "mean"}, "hinge": {}, "robust": {"label_smoothing": 0.1},
    "exo_pair": {"label_smoothing": 0.05}, "nca_pair": {}, "bco_pair": {}, "sppo_hard": {},
    "apo_zero": {}, "apo_down": {}, "sigmoid_norm": {"over": "mean"},
}  # fmt: skip


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("loss_type", PAIR_LOSSES)
def test_preferences_match(trl_trainers: dict[str, Any], loss_type: str, beta: float) -> None:
    """Three pairs: every column of ours and its opposite half are a group of two."""
    x = numbers(Rng().manual_seed(3))
    mine, other = leaves_of(x)
    fields = PAIR_LOSSES[loss_type]
    ours = loss_type.removesuffix("_norm")
    config = DpoConfig.model_validate({"loss_type": ours, "beta": beta} | fields)
    batch = batch_of(x, mine)
    object.__setattr__(batch, "group", torch.arange(3).repeat(2))
    object.__setattr__(batch, "reward", torch.tensor([1.0, 2, 3, 0, 0, 0]))
    smoothing = fields.get("label_smoothing", 0.0)
    settings = {"loss_types": [loss_type], "beta": beta, "label_smoothing": smoothing}
    known = paired_loss(trl_trainers["dpo"], x, other, **settings)
    agree(config.build().loss(batch)[0], known, (mine, other))
