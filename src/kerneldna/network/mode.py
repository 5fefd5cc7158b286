"""Whether a network runs as in training."""

from __future__ import annotations

from torch import nn


def refuse_training(model: nn.Module) -> None:
    """Check that a network is in eval mode, every part of it.

    Raises:
        ValueError: If it is not; the message names a part that trains alone.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        what = f"{training!r} of the network" if training else "the network"
        raise ValueError(
            f"{what} is in training mode, where BatchNorm depends on the batch; call model.eval() first"
        )
