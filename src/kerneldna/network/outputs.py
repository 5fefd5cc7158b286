"""What a network returns: the tensors in it, and how far those of two networks are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors in what a network returns, in order: in tuples, lists, dictionaries and dataclasses, one in another."""
    found: list[Tensor] = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, field.name) for field in fields(leaf)])
    return found


def logits_in(outputs: Any, giver: str, *, mode: str = "") -> Tensor:
    """Return the logits among what a network returns.

    A tensor is those itself. Of several outputs they are the one called "logits", as in transformers and in torchvision's networks
    with auxiliary classifiers, or "out", as in torchvision's for segmentation.

    Args:
        outputs: What it returned.
        giver: Who it is, for the message: "student".
        mode: The mode that it ran in, where that may be why.

    Raises:
        ValueError: If it does not say which they are.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("logits", "out"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    ran = f" in {mode} mode" if mode else ""
    raise ValueError(
        f"the {giver} gives a {type(outputs).__name__}{ran}; expected a tensor of logits (B, classes), or something with one "
        "called 'logits' or 'out': wrap it in a module that returns that"
    )


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference between outputs, as a fraction of the largest expected one; not a number if one is not.

    Of whole numbers and truth values, such as the classes of pixels, it is the share of those that differ.

    Raises:
        ValueError: If there is no tensor to compare.
    """
    if not expected:
        raise ValueError(
            "the network returns no tensor, so that nothing can be compared; let it return tensors, or tuples, lists, dictionaries "
            "or dataclasses of them"
        )
    # torch's max keeps a NaN wherever it stands; Python's would drop it behind a number
    return torch.stack([_apart(a, b) for a, b in zip(expected, found, strict=True)]).max().item()


def _apart(expected: Tensor, found: Tensor) -> Tensor:
    if expected.numel() != found.numel():
        return torch.tensor(inf, device="cpu")
    if not expected.numel():
        return torch.tensor(0.0, device="cpu")
    found = found.reshape(expected.shape)
    if expected.is_floating_point() or expected.is_complex():
        return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).cpu()
    return (found != expected).float().mean().cpu()
