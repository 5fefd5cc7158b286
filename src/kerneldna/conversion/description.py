"""The size of a network as it is, and as it was before its conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kerneldna.conversion.plan import Size, macs_text, size_rows, size_table


@dataclass(frozen=True)
class Description:
    """The size of a network, and of what it was before its conversion; prints as a table.

    Attributes:
        method: The method's name, None for a plain network.
        size: Of the network as it is.
        before: Of the network before its conversion, None for a plain one.
        input_size: `(C, H, W)` of the image the MACs are counted for.
        layers: How many modules of each class it has.
        part: What the MACs are those of, where it is not the whole: "the backbone" of a detector.
        fused: The mode that the network was fused in, None for one as trained. Fusing writes out the kernel of every child.
        unfused: Of a fused network its size as trained, each shared kernel once; None for a plain network or a detector.
    """

    method: str | None
    size: Size
    before: Size | None
    input_size: tuple[int, int, int]
    layers: Mapping[str, int]
    part: str = ""
    fused: str | None = None
    unfused: Size | None = None

    def __str__(self) -> str:
        now = "fused" if self.fused else self.method or "now"
        if self.before is None:
            lines = size_table(size_rows(self.size), ("",))
        else:
            lines = size_table(size_rows(self.before, self.size), ("before", now))
        lines.append(macs_text(self.size, self.input_size, part=self.part))
        if self.fused:
            lines.append(f"fused in {self.fused} mode: {self._written_out()}")
        return "\n".join(lines)

    def _written_out(self) -> str:
        if self.method is None or (self.unfused and self.unfused.parameters >= self.size.parameters):
            return "BatchNorm is folded into the convolutions"
        if self.unfused is None:
            return "shared kernels are written out, BatchNorm is folded into the convolutions"
        return (
            f"each shared kernel, stored once as trained ({self.unfused.parameters:,} parameters), is written out "
            f"({self.size.parameters:,})"
        )
