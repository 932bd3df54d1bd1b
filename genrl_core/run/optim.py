"""The optimizer and its schedule."""

from collections.abc import Iterable

import torch
from torch import nn

from genrl_core.loop.settings import TrainConfig


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on matrices alone, not on biases and norms."""
    named = list(parameters)
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate,
        betas=(config.adam_betas[0], config.adam_betas[1]), eps=config.adam_epsilon, fused=True,
    )  # fmt: skip


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up, then constant, linear or cosine; stepped once per optimizer step on every rank."""
    total = config.iterations * config.num_updates * config.num_minibatches

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
        if config.lr_scheduler == "linear":
            return max(1.0 - progress, 0.0)
        if config.lr_scheduler == "cosine":
            return 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * min(progress, 1.0)))))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
