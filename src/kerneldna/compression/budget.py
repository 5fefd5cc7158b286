"""A budget spent where it saves most: for every set of like layers one basis, one each, or none, and of what size.

For a price p of a parameter (or multiply-accumulate) each layer, or set that shares, takes the size of least `damage + p cost`, and
a set shares if that is less than the sum of its layers' own: exact for that price. The lowest price that meets the budget is found
by bisection; what is left of the budget goes to the best single steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

_ROUNDS = 80


@dataclass(frozen=True, eq=False)
class Curve:
    """What every size of a basis costs and damages.

    Attributes:
        layers: Those that share it.
        costs: Of a basis of 1, 2, ... filters, and last of the layers left as they are.
        damages: The same; the last is 0.
    """

    layers: tuple[str, ...]
    costs: Tensor
    damages: Tensor

    def rank(self, place: int) -> int | None:
        """Return the size at a place of the curve, None where the layers are left as they are."""
        return None if place == len(self.costs) - 1 else place + 1


Alternatives = Sequence[Sequence[Curve]]


@dataclass(frozen=True, eq=False)
class Choice:
    """A curve and the place on it."""

    curve: Curve
    place: int

    @property
    def cost(self) -> float:
        """What it costs."""
        return float(self.curve.costs[self.place])

    @property
    def damage(self) -> float:
        """The damage it does."""
        return float(self.curve.damages[self.place])


def least(sets: Sequence[Alternatives]) -> float:
    """Return what the cheapest choice costs: one filter everywhere."""
    return sum(min(sum(float(c.costs.min()) for c in curves) for curves in each) for each in sets)


def spend(sets: Sequence[Alternatives], budget: float) -> list[Choice]:
    """Choose within a budget, for little damage.

    Args:
        sets: Of each set of like layers the alternatives: curves that cover its layers.
        budget: The most that the choices may cost together; `least` at least.
    """
    low, high = -40.0, 40.0  # powers of ten of the price
    chosen = at_price(sets, 10.0**high)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        tried = at_price(sets, 10.0**middle)
        if sum(choice.cost for choice in tried) <= budget:
            chosen, high = tried, middle
        else:
            low = middle
    return _topped_up(chosen, budget - sum(choice.cost for choice in chosen))


def at_price(sets: Sequence[Alternatives], price: float) -> list[Choice]:
    """Return the best choice of every set for a price of one parameter or multiply-accumulate."""
    chosen: list[Choice] = []
    for alternatives in sets:
        best: tuple[float, list[Choice]] | None = None
        for curves in alternatives:
            total, choices = 0.0, []
            for curve in curves:
                values = curve.damages + price * curve.costs
                place = int(values.argmin())
                total += float(values[place])
                choices.append(Choice(curve, place))
            if best is None or total < best[0]:
                best = total, choices
        chosen += best[1] if best else []
    return chosen


def _topped_up(chosen: list[Choice], left: float) -> list[Choice]:
    """Take the steps that mend most a unit of cost until none fits in what is left."""
    while True:
        best: tuple[float, int, Choice] | None = None
        for index, choice in enumerate(chosen):
            curve = choice.curve
            extra = curve.costs - choice.cost
            gain = (choice.damage - curve.damages) / extra.clamp_min(1e-30)
            gain[(extra <= 0) | (extra > left)] = 0
            place = int(gain.argmax())
            if float(gain[place]) > 0 and (best is None or float(gain[place]) > best[0]):
                best = float(gain[place]), index, Choice(curve, place)
        if best is None:
            return chosen
        _, index, choice = best
        left -= choice.cost - chosen[index].cost
        chosen = [choice if i == index else each for i, each in enumerate(chosen)]
