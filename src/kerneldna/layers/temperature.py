"""The temperature that attentions are divided by: options that several methods share, and the schedule they describe.

a = softmax(z / T): T runs straight from start to end. At first all kernels count alike, so that each one learns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kerneldna.layers.dynamic import Schedule


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """The options of a method whose attentions have a temperature; a method inherits them.

    Args:
        temperature_start: Temperature before training.
        temperature_end: Temperature after `temperature_epochs`.
        temperature_epochs: Epochs from start to end, in a straight line, step by step.

    Raises:
        ValueError: If an end is not above 0, or the epochs are below 0.
    """

    temperature_start: float = 30.0
    temperature_end: float = 1.0
    temperature_epochs: float = 10.0

    def __post_init__(self) -> None:
        start, end, epochs = self.temperature_start, self.temperature_end, self.temperature_epochs
        if min(start, end) <= 0 or epochs < 0:
            raise ValueError(
                f"the temperature runs from {start} to {end} in {epochs} epochs; both ends must be above 0 and the epochs 0 or more"
            )

    def schedule(self, *, like: Tensor) -> Schedule:
        """Return the temperature as a module, on the device of `like`."""
        return Schedule(
            self.temperature_start, self.temperature_end, epochs=self.temperature_epochs, like=like
        )
