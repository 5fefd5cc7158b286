"""The weights of an ONNX file: each shared kernel stored once, the rest stored small.

A derived weight is a few nodes on constants, `kernel * factor`, or where filters are mixed `(kernel + matrix @ kernel) * factor`,
with a Cast in front for fp16 and a Cast and a scale for int8. ONNX Runtime computes them once, while it loads the file; for
runtimes that do not, `kerneldna.deploy.expand` writes them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kerneldna.deploy.onnx_store import Array, Store, float_arrays
from kerneldna.deploy.shared_kernels import SharedKernel

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Place:
    """Where a weight stands in a file: the initializer's name, and whether it holds the weight transposed."""

    name: str
    turned: bool


def places_of(model: ModelProto, weights: Mapping[str, Array]) -> dict[str, Place]:
    """Find the weights of a network in the file the exporter wrote, by their values: their names may have changed.

    Of several with the same values it is the one of the same name, where that is left.

    Args:
        model: Whose weights are float32 initializers.
        weights: The network's weights by name.
    """
    arrays = float_arrays(model.graph)
    found: dict[str, Place] = {}
    taken: set[str] = set()
    for name, weight in weights.items():
        for other in (name, *arrays):
            if (values := arrays.get(other)) is None:
                continue
            same = values.shape == weight.shape and np.array_equal(values, weight)
            turned = not same and values.shape == weight.T.shape and np.array_equal(values, weight.T)
            if (same or turned) and other not in taken:
                found[name] = Place(other, turned)
                taken.add(other)
                break
    return found


def shrink(
    model: ModelProto,
    places: Mapping[str, Place],
    shared: Iterable[SharedKernel],
    *,
    storage: str,
    quantized: bool = False,
) -> None:
    """Store each shared kernel once and the other weights small, in place.

    Args:
        model: The file's contents.
        places: Where the weights of the shared kernels' users stand (`places_of`).
        shared: The kernels to store once.
        storage: "fp32", "fp16" or "int8" with one scale an output channel.
        quantized: The weights were quantized to `NAME_quantized` with `NAME_scale`, and are derived as such.
    """
    store = Store(model.graph, storage)
    for kernel in shared:
        for turned in (False, True):
            users = [name for name in kernel.users if name in places and places[name].turned == turned]
            if _pays(kernel, users):
                store.share(kernel, {name: places[name].name for name in users}, turned, quantized=quantized)
    if storage != "fp32":  # where quantized, what was left in float: the gates
        for name, axis in store.plain_weights().items():
            store.round(name, axis=axis)
    store.finish()


def _pays(kernel: SharedKernel, users: Iterable[str]) -> bool:
    """Whether a file is smaller where these weights are derived."""
    mixes = [kernel.mixes.get(name, ()) for name in users]
    if kernel.adds:
        return len(mixes) > 1
    numbers = kernel.kernel[0].numel()
    weights = sum((len(mix[0]) if mix else len(kernel.kernel)) * numbers for mix in mixes)
    return kernel.kernel.numel() + sum(part.numel() for mix in mixes for part in mix) < weights
