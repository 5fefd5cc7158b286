"""New names in an ONNX graph: those of initializers, inputs and outputs of nodes are one space.

The exporter fills it with names of the network's own: weights are called as the network calls them (`linear.bias`), what nodes
give as their operators are called (`linear`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneldna.deploy.expand import read_by

if TYPE_CHECKING:
    from onnx import GraphProto


class Names:
    """The names of a graph.

    Args:
        graph: What is added to it later takes its name from here.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.taken = {part.name for part in (*graph.initializer, *graph.input, *graph.output, *graph.node)}
        self.taken |= read_by(graph.node) | {name for node in graph.node for name in node.output}

    def new(self, wanted: str) -> str:
        """Return `wanted`, with a number behind it where another has that name, and take it."""
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}.{count}", count + 1
        self.taken.add(name)
        return name
