"""The optimizer and the learning rate of a recipe.

The learning rate is a function of the step alone, so a resumed run needs to know nothing but its step:

    step < warm-up:  warmup_lr + (lr - warmup_lr) * step / warm-up
    after it:        min_lr + (lr - min_lr) * (1 + cos(pi * (step - warm-up) / (steps - warm-up))) / 2
    or, by steps:    lr / 10 ** (milestones passed); a milestone is passed with the first step after its epochs
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from kerneldna.recipes.specs import OptimizerSpec, ScheduleSpec


def learning_rate(step: int, *, steps: int, peak: float, schedule: ScheduleSpec) -> float:
    """Return the learning rate of one step.

    Args:
        step: Steps done before this one.
        steps: Steps of the whole run.
        peak: The highest learning rate.
        schedule: Length and ends of warm-up and cosine, or the milestones.
    """
    warmup = schedule.warmup_epochs * steps / schedule.epochs
    if step < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / warmup
    if schedule.milestones:
        # rounded: 1.1 epochs of 10 steps are 11.000000000000002 in floats, and would end a step late
        passed = [step >= round(mark * steps / schedule.epochs) for mark in schedule.milestones]
        return peak / 10 ** sum(passed)
    done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    return schedule.min_lr + (peak - schedule.min_lr) * (1 + math.cos(math.pi * done)) / 2


def parameter_groups(model: nn.Module, *, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Return the parameters of `model` that train, as an optimizer takes them.

    Args:
        model: The network.
        decay_norm_and_bias: False keeps biases and tensors of one dimension (norms) from weight decay.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = decay_norm_and_bias or (parameter.ndim > 1 and not name.endswith("bias"))
            (decayed if decays else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters of `model` that train."""
    groups = parameter_groups(model, decay_norm_and_bias=spec.decay_norm_and_bias)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=spec.lr,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
    )
