"""One whole parameter update against TRL's GRPOTrainer: one rollout, one table of rewards, SGD.

Both start from the same tiny Llama and see the same prompts, completions and rewards. What is
compared is everything in between: prompts of several lengths and their padding, the shift by one,
the end of a sequence, temperature, advantages, the loss and its denominator.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrl_autoregressive import CausalLmConfig, TokenConfig
from genrl_core import (
    Media,
    Plan,
    Policy,
    Prompt,
    Reward,
    Sampler,
    Tensors,
    Trajectory,
    Transition,
    load_recipe,
)
from genrl_core.run.assembly import build_trainer

TEXTS = ("1+2=", "3")
TEMPERATURE, SIZE, LENGTH = 0.7, 4, 6
LOSSES = {"grpo": {}, "dapo": {}, "dr_grpo": {"scale_rewards": "none"}}
CHARACTERS = "0123456789+="


class Rewards(Reward):
    """Row n of a fixed table for the n-th completion."""

    table = (1.0, 0.2, -0.5, 0.4, 0.0, 2.0, 0.3, 0.1)

    def __call__(self, media: Media, prompts: list[Prompt]) -> list[float]:
        return list(self.table[: len(prompts)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in the published format, with a character-level tokenizer; 0 ends a text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("llama")
    vocabulary = {"<end>": 0, "<begin>": 1} | {c: i + 2 for i, c in enumerate(CHARACTERS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", bos_token="<begin>", pad_token="<end>"
    ).save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=24,
            eos_token_id=0, bos_token_id=1, pad_token_id=0, initializer_range=0.2,
        )).save_pretrained(path)  # fmt: skip
    return path


class Recorded(Sampler):
    """Gives the recorded trajectory back, whatever it is asked for, and scores like ``token``."""

    def __init__(self, known: Trajectory, scorer: Sampler):
        self._known, self._scorer = known, scorer

    def rollout(self, policy: Policy, cond: Tensors, plan: Plan, grad_steps: int = 0) -> Trajectory:
        assert len(plan) == len(self._known)
        return self._known

    def densities(
        self, policy: Policy, trajectory: Trajectory, k: Tensor, b: Tensor
    ) -> tuple[Transition, Tensors]:
        return self._scorer.densities(policy, trajectory, k, b)


@pytest.fixture(scope="module")
def rollout(folder: Path) -> Trajectory:
    """Eight completions of two prompts, drawn once by the weights that both sides begin with."""
    policy = CausalLmConfig(weights=str(folder)).build()
    prompts = tuple(Prompt(text, text) for text in TEXTS)
    plan = Plan(5, 0, 0, prompts, torch.arange(2).repeat_interleave(SIZE), torch.arange(8) % SIZE)
    drawn = scorer().rollout(policy, policy.encode(plan.sample_prompts()), plan)
    assert len(drawn.final["length"].unique()) > 2, "the completions are to differ in length"
    return drawn


def scorer() -> Sampler:
    return TokenConfig(max_new_tokens=LENGTH, temperature=TEMPERATURE).build()


def ours(folder: Path, rollout: Trajectory, loss: str, prompts: Path) -> dict[str, Tensor]:
    """The parameters after one step of the public trainer."""
    recipe = load_recipe({
        "policy": {"use": "causal_lm", "weights": str(folder)},
        "sampler": {"use": "token", "max_new_tokens": LENGTH, "temperature": TEMPERATURE},
        "objective": {loss: {"epsilon": 0.2}}, "prompts": {"file": str(prompts)},
        "filter": {"min_std": None, "then": "drop"},
        "train": {
            "iterations": 1, "num_prompts": 2, "num_generations": SIZE, "learning_rate": 1.0,
            "max_grad_norm": None, "micro_batch_size": 3,
        },
    })  # fmt: skip
    trainer = build_trainer(
        recipe, sampler=Recorded(rollout, scorer()), rewards={"table": Rewards()},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )  # fmt: skip
    record = trainer.step()
    assert record.problem is None
    assert record.metrics["drift"] < 1e-5
    return {name: p.detach() for name, p in trainer.parts.policy.network.named_parameters()}


def theirs(
    folder: Path, rollout: Trajectory, loss: str, out: Path, accumulate: int
) -> dict[str, Tensor]:
    """The parameters after one step of TRL's trainer on the same table."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    final, mask = rollout.final, rollout.terms.mask.T
    tokens = [row[keep].tolist() for row, keep in zip(final["tokens"], mask, strict=True)]
    logprobs = [r[keep].tolist() for r, keep in zip(rollout.terms.log_probs.T, mask, strict=True)]
    asked: list[str] = []

    def recorded(prompts: list[str], trainer: Any) -> dict[str, Any]:
        asked.extend(prompts)
        order = order_of(prompts)
        ids = [tokenizer(text)["input_ids"] for text in prompts]
        return {
            "prompt_ids": ids, "completion_ids": [tokens[i] for i in order],
            "logprobs": [logprobs[i] for i in order],
        }  # fmt: skip

    def judged(prompts: list[str], **_: Any) -> list[float]:
        return [Rewards.table[i] for i in order_of(prompts)]

    settings = GRPOConfig(
        output_dir=str(out), loss_type=loss, num_generations=SIZE, max_steps=1,
        per_device_train_batch_size=8 // accumulate, gradient_accumulation_steps=accumulate,
        max_completion_length=max(map(len, tokens)), temperature=TEMPERATURE, beta=0.0, epsilon=0.2,
        learning_rate=1.0, max_grad_norm=0.0, use_cpu=True, bf16=False, report_to=[], seed=0,
        gradient_checkpointing=False, save_strategy="no", logging_strategy="no",
        disable_tqdm=True, **LOSSES[loss],
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = GRPOTrainer(
        model=model, args=settings, reward_funcs=judged, rollout_func=recorded,
        train_dataset=Dataset.from_dict({"prompt": list(TEXTS)}), processing_class=tokenizer,
        optimizers=(optimizer, constant),
    )  # fmt: skip
    trainer.train()
    assert sorted(asked) == sorted([text for text in TEXTS for _ in range(SIZE)])
    return {name: p.detach() for name, p in model.named_parameters()}


def order_of(prompts: list[str]) -> list[int]:
    """The row of the table of every prompt's n-th occurrence: TRL shuffles the prompts."""
    seen = dict.fromkeys(TEXTS, 0)
    found = []
    for text in prompts:
        found.append(TEXTS.index(text) * SIZE + seen[text])
        seen[text] += 1
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_update_is_that_of_trl(
    folder: Path, rollout: Trajectory, loss: str, accumulate: int, tmp_path: Path,
    trl_trainers: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE"):
        monkeypatch.setenv(variable, "1")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(TEXTS) + "\n")
    start = {n: p.detach().clone() for n, p in network(folder).named_parameters()}
    found = ours(folder, rollout, loss, prompts)
    known = theirs(folder, rollout, loss, tmp_path / "trl", accumulate)
    moved = max(float((known[name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-2
    for name in start:
        torch.testing.assert_close(found[name], known[name], rtol=0, atol=1e-6)


def network(folder: Path) -> torch.nn.Module:
    return CausalLmConfig(weights=str(folder)).build().network
