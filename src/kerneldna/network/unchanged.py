"""A network that is moved and run, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put modes, devices and memory of a network back at the end: what it holds is then where, and laid out as, it was before.

    Args:
        model: Any network. Its tensors are kept until then, beside those that it is moved to.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    held = [(module._parameters.copy(), module._buffers.copy()) for module in modules]
    parameters = [each for own, _ in held for each in own.values() if each is not None]
    tensors = [
        *parameters,
        *(each.grad for each in parameters),
        *(b for _, own in held for b in own.values()),
    ]
    kept = [(tensor, tensor.data) for tensor in tensors if isinstance(tensor, Tensor)]
    try:
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
        for module, mode, (own_parameters, own_buffers) in zip(modules, modes, held, strict=True):
            module.training = mode
            # some devices take new tensors in the place of these
            module._parameters.update(own_parameters)
            module._buffers.update(own_buffers)
