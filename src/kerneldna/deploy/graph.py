"""A network as one graph, by `torch.export`, with a batch of any size or of one: what every export runtime starts from."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


@torch.no_grad()
def exported_program(model: nn.Module, x: Tensor, *, dynamic: bool) -> ExportedProgram:
    """Return the graph of `model` in eval mode.

    Args:
        model: A network in eval mode.
        x: Images to trace with, `(B, C, H, W)`.
        dynamic: Let the batch be of any size; else it is that of `x`.
    """
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of the exporter about its own internals
        return torch.export.export(model, (x,), dynamic_shapes=shapes)


def convolution_of_batch(program: ExportedProgram) -> str | None:
    """Return the name of a convolution whose number of groups is computed, as that of kernels for each image is, or None."""
    for node in program.graph.nodes:
        if node.op == "call_function" and "conv" in str(node.target):
            groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups")
            if isinstance(groups, torch.fx.Node):
                return node.name
    return None
