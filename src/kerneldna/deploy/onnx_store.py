"""The graph of an ONNX file whose initializers are replaced by nodes that compute them, or stored small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from kerneldna.deploy.expand import drop_unused
from kerneldna.deploy.onnx_names import Names
from kerneldna.deploy.shared_kernels import SharedKernel

if TYPE_CHECKING:
    from onnx import GraphProto

Array = np.ndarray[Any, Any]
SMALLEST = 1024  # elements; smaller weights stay as they are, rounding them saves nothing


def bytes_in_int8(model: nn.Module) -> int:
    """Return about how many bytes the weights of a file take where it stores them in int8, each shared kernel once.

    The graph of the file comes on top: some ten kilobytes, or a hundred.

    Args:
        model: The network as it was trained; its norms are folded in the file.
    """
    return sum(
        weight.numel() + 4 * len(weight)
        if weight.ndim > 1 and weight.numel() >= SMALLEST
        else 4 * weight.numel()
        for weight in model.parameters()
    )


def float_arrays(graph: GraphProto) -> dict[str, Array]:
    """Return the float32 initializers of two dimensions or more by name."""
    from onnx import numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type == 1
    }


class Store:
    """A graph whose initializers are replaced by nodes that compute them."""

    def __init__(self, graph: GraphProto, storage: str) -> None:
        self.graph, self.storage, self.names = graph, storage, Names(graph)
        self.arrays = float_arrays(graph)
        self.nodes: list[Any] = []
        self.gone: set[str] = set()

    def share(self, kernel: SharedKernel, users: Mapping[str, str], turned: bool, *, quantized: bool) -> None:
        """Let weights be derived from a kernel that is stored once, or a basis be read by all who convolve with it.

        Args:
            kernel: The kernel or basis.
            users: Name of a weight -> the initializer that holds it.
            turned: The initializers hold their weights transposed.
            quantized: As `shrink` takes it.
        """
        whole = [
            name
            for user, name in users.items()
            if not (kernel.adds or kernel.mixes.get(user) or kernel.users[user])
        ]
        if quantized:
            self._read_one(whole)
        derived = {user: name for user, name in users.items() if name not in whole}
        if quantized and not derived:
            return
        values = kernel.kernel.double().cpu().numpy()
        name = f"{kernel.name}.{'kernel' if kernel.adds else 'basis'}{'.T' * turned}"
        source = self.add(name, _turned(values, turned), axis=int(turned))
        if not quantized:
            self._read_instead(dict.fromkeys(whole, source))
        for user, name in derived.items():
            own = [_turned(factor.cpu().numpy(), turned) for factor in kernel.users[user]]
            matrices = [matrix.cpu().numpy() for matrix in kernel.mixes.get(user, ())]
            base = source
            if matrices:
                base = self.mix(name, source, matrices, values.shape, turned=turned, adds=kernel.adds)
            shift = [_turned(part.cpu().numpy(), turned) for part in kernel.shifts.get(user, ())]
            if quantized:
                self.derive_int8(name, base, own, shift, dimensions=values.ndim)
            else:
                self.derive(name, base, own, shift)

    def add(self, name: str, values: Array, *, axis: int) -> str:
        """Store `values` as `storage` says, output channels along `axis`; return the name of the float32 tensor."""
        return self._stored(name, values, f"{name}.float" if self.storage != "fp32" else name, axis=int(axis))

    def mix(
        self,
        name: str,
        source: str,
        matrices: list[Array],
        shape: tuple[int, ...],
        *,
        turned: bool,
        adds: bool,
    ) -> str:
        """Multiply the kernel `source` by `matrices`; return the name of the product, or of its sum with the kernel.

        Args:
            name: The initializer that is derived, for names.
            source: A kernel of `shape`, or turned.
            matrices: As `kerneldna.layers.modulation.mixed` takes them, stored as `storage` says.
            shape: `(C_out, C_in/groups, k, k)` or `(C_out, C_in)`.
            turned: The kernel is a matrix, transposed.
            adds: Add the product to the kernel.
        """
        stored = [
            self.add(f"{name}.mix{i}", _turned(matrix, turned), axis=int(turned))
            for i, matrix in enumerate(matrices)
        ]
        groups = shape[0] // matrices[-1].shape[1]
        product = (
            source if turned else self._reshaped(source, (groups, shape[0] // groups, -1), f"{name}.rows")
        )
        for i, matrix in reversed(list(enumerate(matrices))):
            if turned:
                product = self._product(product, stored[i], f"{name}.mixed{i}")
                continue
            rows, columns = matrix.shape
            by_group = self._reshaped(stored[i], (groups, rows // groups, columns), f"{name}.by_group{i}")
            product = self._product(by_group, product, f"{name}.mixed{i}")
        if not turned:
            product = self._reshaped(product, (len(matrices[0]), *shape[1:]), f"{name}.mixed")
        return self._node("Add", [source, product], f"{name}.mix") if adds else product

    def derive(self, name: str, source: str, factors: list[Array], shift: list[Array]) -> None:
        """Let the initializer `name` be `source` times `factors`, and the product of `shift` added to it."""
        self.gone.add(name)
        self._derived(name, source, factors, shift)

    def _derived(self, out: str, source: str, factors: list[Array], shift: list[Array]) -> str:
        if shift:
            scaled = self._derived(f"{out}.scaled", source, factors, [])
            return self._node("Add", [scaled, self._multiplied(f"{out}.shift", shift)], out)
        if not factors:
            return self._node("Identity", [source], out)
        return self._node("Mul", [source, self._multiplied(out, factors)], out)

    def _multiplied(self, name: str, factors: list[Array]) -> str:
        """Return the name of the product of `factors`."""
        by_shape: dict[tuple[int, ...], Array] = {}
        for factor in factors:
            by_shape[factor.shape] = by_shape.get(factor.shape, np.ones(1)) * factor
        # the small ones among themselves first, so that the kernel is multiplied once
        steps = sorted(by_shape.values(), key=lambda values: values.size)
        names = [
            self._constant(f"{name}.factor{i}", values.astype(np.float32)) for i, values in enumerate(steps)
        ]
        product = names[0]
        for i, factor in enumerate(names[1:], start=1):
            product = self._node("Mul", [product, factor], f"{name}.product{i}")
        return product

    def derive_int8(
        self, name: str, source: str, factors: list[Array], shift: list[Array], *, dimensions: int
    ) -> None:
        """Let the quantized initializer of `name` be what `derive` makes, on the scale it was quantized with.

        Args:
            name: The initializer.
            source: A kernel.
            factors: Each of the kernel's dimensions.
            shift: The same.
            dimensions: How many those are; a parent without a norm behind it has no factors.
        """
        from onnx import numpy_helper

        quantized = f"{name}_quantized"
        readers = [node for node in self.graph.node if node.op_type == "DequantizeLinear"]
        reader = next((node for node in readers if node.input[0] == quantized), None)
        if reader is None:  # its layer was left in float
            self.derive(name, source, factors, shift)
            return
        scale = next(tensor for tensor in self.graph.initializer if tensor.name == reader.input[1])
        inverse = 1 / numpy_helper.to_array(scale).astype(np.float64)
        shape = [1] * dimensions
        # a scale for each slice along the axis; without one, one for all
        shape[next((each.i for each in reader.attribute if each.name == "axis"), 0)] = inverse.size
        steps = inverse.reshape(shape)
        whole = self._derived(f"{name}.steps", source, [*factors, steps], [*shift, steps] if shift else [])
        rounded = self._node("Round", [whole], f"{name}.rounded")
        bounds = [
            self._constant(f"{name}.{which}", np.array(value, np.float32))
            for which, value in (("low", -127), ("high", 127))
        ]
        clipped = self._node("Clip", [rounded, *bounds], f"{name}.clipped")
        self.gone.add(quantized)
        self._node("Cast", [clipped], quantized, to=3)

    def round(self, name: str, *, axis: int) -> None:
        """Store the initializer `name` as `storage` says."""
        self.gone.add(name)
        self._stored(name, self.arrays[name].astype(np.float64), name, axis=axis)

    def plain_weights(self) -> dict[str, int]:
        """Return the weights of convolutions and matrix products that are still as they were, with their channel axis."""
        found: dict[str, int] = {}
        for node in self.graph.node:
            weight = node.input[1] if len(node.input) > 1 else ""
            if weight not in self.arrays or weight in self.gone or self.arrays[weight].size < SMALLEST:
                continue
            if node.op_type in ("Conv", "MatMul"):
                found[weight] = 0 if node.op_type == "Conv" else self.arrays[weight].ndim - 1
            elif node.op_type == "Gemm":
                turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                found[weight] = 0 if turned else 1
        return found

    def finish(self) -> None:
        """Put the nodes before those that read them, and drop what is no longer read."""
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in self.gone]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        old = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*self.nodes, *old])
        drop_unused(self.graph)

    def _read_one(self, weights: list[str]) -> None:
        """Let all who read equal weights, quantized or not, read the first's; where rounding made them unequal, each its own."""
        from onnx import numpy_helper

        parts = ("", "_quantized", "_scale", "_zero_point")
        known = {f"{name}{part}": None for name in weights for part in parts}
        values = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer if t.name in known}
        others: dict[str, str] = {}
        for name in weights[1:]:
            pairs = {f"{name}{part}": f"{weights[0]}{part}" for part in parts if f"{name}{part}" in values}
            if all(kept in values and np.array_equal(values[n], values[kept]) for n, kept in pairs.items()):
                others |= pairs
        self._read_instead(others)

    def _read_instead(self, others: Mapping[str, str]) -> None:
        """Let the nodes that read an initializer read another instead."""
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = others.get(name, name)

    def _stored(self, name: str, values: Array, out: str, *, axis: int) -> str:
        if self.storage == "fp32":
            return self._constant(out, values.astype(np.float32))
        if self.storage == "fp16":
            if np.abs(values).max() > np.finfo(np.float16).max:
                raise ValueError(f"weight {name!r} does not fit into fp16; use storage='fp32'")
            return self._cast(self._constant(f"{name}.fp16", values.astype(np.float16)), out)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.abs(values).max(axis=others, keepdims=True) / 127
        scale[scale == 0] = 1
        scale = scale.astype(np.float32)
        rounded = np.rint(values / scale).clip(-127, 127).astype(np.int8)
        cast = self._cast(self._constant(f"{name}.int8", rounded), f"{name}.whole")
        return self._node("Mul", [cast, self._constant(f"{name}.scale", scale)], out)

    def _constant(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        name = self.names.new(name)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _product(self, left: str, right: str, out: str) -> str:
        """Multiply two matrices of constants."""
        if self.storage == "int8":
            # the signs cancel: OpenVINO would leave the product of what is read straight from int8 to every inference
            left, right = (
                self._node("Neg", [each], f"{out}.{side}")
                for side, each in (("left", left), ("right", right))
            )
        return self._node("MatMul", [left, right], out)

    def _reshaped(self, source: str, shape: tuple[int, ...], out: str) -> str:
        return self._node("Reshape", [source, self._constant(f"{out}.shape", np.array(shape, np.int64))], out)

    def _cast(self, source: str, out: str) -> str:
        return self._node("Cast", [source], out, to=1)

    def _node(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        from onnx import helper

        # in the place of an initializer, or beside all
        out = out if out in self.gone else self.names.new(out)
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out


def _turned(values: Array, turned: bool) -> Array:
    return values.T if turned else values
