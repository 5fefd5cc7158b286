"""What children learnt over the positions of their parent's kernel (KernelDNA, arXiv 2503.23379, Fig. 7); how far apart they are.

`kerneldna.figures.attention_maps` draws the children of one parent side by side, `kerneldna.figures.heatmap.distance_figure`
the distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kerneldna.conversion.convert import plan_of
from kerneldna.network import surgery


@torch.no_grad()
def spatial_attentions(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the spatial attention of every child by its parent's name and its own, `(k_h, k_w)` each, on the CPU.

    A parent's kernel is multiplied by 1 + the map, at each position. Of a child whose attention differs from filter to filter
    ("position", `(C_out, 1, k_h, k_w)`) it is the mean over filters. Children without one, as all of 1x1 kernels are, are left
    out, and parents without a child left.

    Args:
        model: A converted network; a plain or fused one has no children, and gives an empty dictionary.
    """
    plan = plan_of(model)
    found: dict[str, dict[str, Tensor]] = {}
    for family in plan.families if plan else ():
        for name in family.children:
            attention = _attention(surgery.get(model, name))
            if attention is not None:
                found.setdefault(family.parent, {})[name] = attention
    return found


def pairwise_distance(maps: Mapping[str, Tensor]) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return how far apart the spatial attentions of the children of one parent are: their names, and a symmetric matrix.

        ||(1 + s_i) - (1 + s_j)|| / mean(||1 + s_i||, ||1 + s_j||)        Frobenius norms

    1 + s is what the kernel is multiplied by: 0 is the same child twice, 0.1 a tenth of the kernel differently weighted. Add a map
    of zeros under the parent's name to see how far each child is from its parent.

    Args:
        maps: Child name -> its spatial attention s, `(k_h, k_w)`, all of one shape.

    Raises:
        ValueError: If there is no map, or the shapes differ.

    Example:
        >>> pairwise_distance({"conv1": torch.zeros(3, 3), "conv2": torch.ones(3, 3)})[1][0]
        (0.0, 0.6666666666666666)
    """
    if not maps:
        raise ValueError("maps is empty; give one parent's children, as spatial_attentions(model)[parent]")
    if len({tuple(s.shape) for s in maps.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(s.shape)}" for name, s in maps.items())
        raise ValueError(
            f"the maps differ in shape: {shapes}; compare children of one parent, which have its kernel's shape"
        )
    factors = torch.stack([1 + s.detach().double().flatten() for s in maps.values()])
    norms = torch.linalg.vector_norm(factors, dim=1)
    apart = torch.linalg.vector_norm(factors[:, None] - factors[None, :], dim=2)
    # two factors of zeros are the same one
    distances = torch.nan_to_num(apart / ((norms[:, None] + norms[None, :]) / 2), nan=0.0)
    return tuple(maps), tuple(tuple(row) for row in distances.tolist())


def _attention(child: Any) -> Tensor | None:
    total = None
    for part in (getattr(child, "spatial", None), getattr(child, "position", None)):
        if part is None or part.ndim != 4 or part.shape[2:] == (1, 1):
            continue
        s = part.detach().mean((0, 1)).cpu()
        total = s if total is None else total + s + total * s  # (1 + a)(1 + b) = 1 + (a + b + a b)
    return total
