"""`fuse_`: turn a trained network into plain PyTorch modules that compute the same.

Every module of this library that stands for a layer offers `fused()`, the plain modules that compute what it computes in eval mode.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kerneldna import surgery
from kerneldna.convert import input_size_of, set_state, state_of
from kerneldna.registry import suggest

log = logging.getLogger(__name__)
MODES = ("accuracy",)
TOLERANCE = 1e-4


@torch.no_grad()
def fuse_(model: nn.Module, *, mode: str = "accuracy", probe: Tensor | None = None) -> nn.Module:
    """Materialise every child's kernel, in place; a convolutional network then holds no class of this library.

    A child becomes `nn.Sequential(gate, conv)`: timm's SqueezeExcite with the gate's BatchNorm folded in, and an `nn.Conv2d`. The
    outputs before and after are compared on a probe.

    Args:
        model: A converted network in eval mode.
        mode: "accuracy" keeps the dynamic gates.
        probe: Input to compare on, `(B, C, H, W)`; by default two random images.

    Returns:
        The same `model`; the largest relative difference is logged and stands in `state_of(model)["fused"]`.

    Raises:
        ValueError: If the network is in training mode, holds nothing to fuse, or is fused already.
        RuntimeError: If the outputs differ by more than 1e-4 of the largest; the model is then as it was.
    """
    if mode not in MODES:
        raise ValueError(suggest("mode", mode, MODES))
    if any(module.training for module in model.modules()):
        raise ValueError(
            "the network is in training mode, where BatchNorm depends on the batch; call model.eval() first"
        )
    if state_of(model).get("fused"):
        raise ValueError("this network is fused already")
    x = surgery.probe(model, input_size_of(model), batch=2) if probe is None else probe
    before = _outputs(model, x)
    replaced = fuse_structure_(model)
    difference = surgery.relative_difference(before, _outputs(model, x))
    if not difference <= TOLERANCE:  # also when it is not a number
        for name, module in replaced.items():
            surgery.replace_(model, name, module)
        set_state(model, fused=None)
        raise RuntimeError(
            f"fused outputs differ by {difference:.2e} of the largest output, more than {TOLERANCE:.0e} allows; the model "
            "was left unfused. Fuse in float32, and check that its outputs are finite"
        )
    set_state(model, fused={"mode": mode, "difference": difference})
    log.info("fused %d layers; largest relative output difference %.1e", len(replaced), difference)
    return model


def fuse_structure_(model: nn.Module) -> dict[str, nn.Module]:
    """Replace every module that offers `fused()`, without comparing outputs; return the replaced ones by name.

    Raises:
        ValueError: If there is none.
    """
    replaced = {name: module for name, module in model.named_modules() if hasattr(module, "fused")}
    if not replaced:
        raise ValueError(
            "nothing to fuse: this network has no child layer; fusing is for networks converted by KernelDNA"
        )
    plain = {name: module.fused() for name, module in replaced.items()}  # pyright: ignore[reportCallIssue]
    for name, module in plain.items():
        surgery.replace_(model, name, module)
    return replaced


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
