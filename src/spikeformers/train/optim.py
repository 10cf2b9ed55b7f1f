"""The optimiser and its schedule, both functions of the recipe and the step alone."""

import math

import torch
from torch import nn


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW without weight decay on norms, biases and neurons (all tensors below 2-d)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_at(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Return the rate of a step in `0..steps-1`: linear warm-up to `peak`, half-cosine to zero."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
