"""The two ways of `kdna compress`: bases fitted to what layers see, or the children of KernelDNA, copies of their parents.

Bases are what works on trained weights. Children are there to compare with: a network of copies answers by chance, until it is
trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kerneldna.compression.compress import carried_out, refined_
from kerneldna.compression.measure import IMAGES, Measured, measure
from kerneldna.compression.plan import CompressionPlan, check_budget, planned
from kerneldna.conversion.convert import carry_out_, classes_of, describe, plan
from kerneldna.conversion.plan import Plan, Size
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import calibration_loader
from kerneldna.deploy.onnx_store import bytes_in_int8
from kerneldna.figures.compression_curve import compression_curve
from kerneldna.network import copies, surgery
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import methods, suggest
from kerneldna.training.evaluate import labelled_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
BASES, CHILDREN = "sharedbasis", "kerneldna"


@dataclass(frozen=True)
class Asked:
    """What a network is to be compressed to, and how.

    Attributes:
        method: "sharedbasis" or "kerneldna".
        budget: The share to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs".
        share: Let layers share bases; None for yes.
        images: How many training images are looked at to plan and fit; None for as many as do.
        refine: Refit layer by layer on what the compressed network sees itself; None for yes, where there is something to refit.

    Raises:
        ValueError: If the method is neither, the budget is none, or an option is given that children have no use for.
    """

    method: str = BASES
    budget: float = 0.5
    of: str = "parameters"
    share: bool | None = None
    images: int | None = None
    refine: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in (BASES, CHILDREN):
            raise ValueError(suggest("method that compresses", self.method, (BASES, CHILDREN)))
        check_budget(self.budget, self.of)
        if self.method == BASES:
            return
        if self.of != "parameters":
            raise ValueError(
                f"of={self.of!r} was given with method={CHILDREN!r}, whose children run as the layers that they stand in for, with "
                f"as many multiply-accumulates; leave of= out, or give method={BASES!r}"
            )
        for name in ("share", "images", "refine"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}={value} was given with method={CHILDREN!r}, whose children start as copies of their parents: "
                    f"no basis is fitted to images; leave {name}= out, or give method={BASES!r}"
                )

    def planned(self, measured: Measured) -> CompressionPlan:
        """Plan with what was measured; errors as of `laid_out`."""
        return planned(measured, budget=self.budget, of=self.of, share=self.share is not False)


@dataclass(frozen=True)
class Smaller:
    """A network made smaller.

    Attributes:
        network: It, in eval mode.
        steps: The networks on the way to it and it itself, by what was done: "copied", or "fitted" and "refined".
        facts: The plan, sizes and the curve of all budgets, as JSON takes them.
        curve: That curve drawn; children have none.
    """

    network: nn.Module
    steps: Mapping[str, nn.Module]
    facts: Mapping[str, Any]
    curve: Figure | None = None


def laid_out(
    asked: Asked,
    network: nn.Module,
    recipe: Recipe,
    *,
    cache: Path | None = None,
    progress: bool,
    accelerator: str = "auto",
) -> CompressionPlan | Plan:
    """Return what would change in a network, which stays as it is.

    Args:
        asked: What is wanted.
        network: In eval mode, not converted.
        recipe: Says what images it is for.
        cache: A folder to keep what is measured in: the same measurement, stopped and begun again, goes on from there.
        progress: Show progress bars.
        accelerator: As for `train`: the network is measured on a CUDA device where there is one, unless this is another.

    Raises:
        ValueError: If the budget is out of reach, or the network cannot be compressed.
    """
    if asked.method == CHILDREN:
        return _children(asked, network)
    with _on_device(network, accelerator):
        return asked.planned(_measured(asked, network, recipe, cache=cache, progress=progress))


def made_smaller(
    asked: Asked,
    network: nn.Module,
    recipe: Recipe,
    *,
    cache: Path | None = None,
    progress: bool = True,
    accelerator: str = "auto",
) -> Smaller:
    """Return a smaller copy of a network; arguments and errors as of `laid_out`.

    Args:
        asked: What is wanted.
        network: In eval mode, not converted; it is not changed.
        recipe: Says what images it is for.
        cache: As of `laid_out`.
        progress: Show progress bars, and print the plan.
        accelerator: As of `laid_out`.
    """
    if asked.method == CHILDREN:
        children = _children(asked, network)
        _say(children, progress=progress)
        small = copies.copied(network)
        carry_out_(small, children)
        found = {
            "families": {each.parent: list(each.children) for each in children.families},
            "skipped": [asdict(skip) for skip in children.skipped],
        }
        small.eval()
        facts = _facts(asked, (network, small), (children.before, children.after))
        return Smaller(small, {"copied": small}, {**facts, **found})
    with _on_device(network, accelerator):
        measured = _measured(asked, network, recipe, cache=cache, progress=progress)
        laid = asked.planned(measured)
        _say(laid, progress=progress)
        small = carried_out(measured, laid, refine=False, progress=progress)
        steps = {"fitted": small}
        if asked.refine is not False and laid.groups:
            small = refined_(measured, laid, copies.copied(small), progress=progress)
            steps["refined"] = small
    for each in steps.values():
        each.cpu()
    plain = asdict(laid)
    found = {key: plain[key] for key in ("damage", "images", "sets", "curve", "skipped")}
    before, after = (describe(each, input_size=measured.input_size).size for each in (network, small))
    facts = _facts(asked, (network, small), (before, after))
    return Smaller(small, steps, {**facts, **found}, curve_of(laid))


def _say(laid: CompressionPlan | Plan, *, progress: bool) -> None:
    if progress:
        log.info("%s", laid)


@contextmanager
def _on_device(network: nn.Module, accelerator: str) -> Iterator[None]:
    """Hold a network on the CUDA device where there is one: no other but the CPU computes in double precision."""
    network.to(surgery.device_of({"auto": "auto", "gpu": "cuda", "cuda": "cuda"}.get(accelerator, "cpu")))
    try:
        yield
    finally:
        network.cpu()


def _children(asked: Asked, network: nn.Module) -> Plan:
    options = {"budget": asked.budget, "reduction": "auto"}
    return plan(network, methods.get(CHILDREN)(**options))


def _measured(
    asked: Asked, network: nn.Module, recipe: Recipe, *, cache: Path | None = None, progress: bool
) -> Measured:
    data, images = open_data(recipe.data.source), asked.images or IMAGES
    loader = calibration_loader(labelled_for(classes_of(network), data), recipe, images=images)
    return measure(network, loader, limit=images, progress=progress, cache=cache)


def _facts(asked: Asked, networks: tuple[nn.Module, nn.Module], sizes: tuple[Size, Size]) -> dict[str, Any]:
    """Return what was asked for, and the sizes before and after."""
    found = {
        figure: [getattr(size, figure) for size in sizes] for figure in ("parameters", "macs", "stored_bytes")
    }
    found["int8_bytes"] = [bytes_in_int8(network) for network in networks]
    named = {
        figure: dict(zip(("original", "compressed"), both, strict=True)) for figure, both in found.items()
    }
    return {"method": asked.method, "budget": asked.budget, "of": asked.of, **named}


def curve_of(laid: CompressionPlan) -> Figure:
    """Return the curve of a plan drawn: size against damage, for all budgets."""
    sizes = [point.parameters if laid.of == "parameters" else point.macs for point in laid.curve]
    return compression_curve(
        sizes,
        [point.damage for point in laid.curve],
        whole=(laid.parameters if laid.of == "parameters" else laid.macs)[0],
        what="MACs" if laid.of == "macs" else "parameters",
    )
