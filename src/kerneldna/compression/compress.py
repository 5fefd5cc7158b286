"""`compress`: a smaller network of nearly the same answers, from a trained one and some hundred images without labels."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from kerneldna.compression.damage import apart, damage, trying
from kerneldna.compression.images import Images, answers, spread
from kerneldna.compression.joint import refit_bases_
from kerneldna.compression.measure import DAMAGE_IMAGES, IMAGES, KINDS, Measured, measure
from kerneldna.compression.plan import CompressionPlan, check_budget, planned
from kerneldna.compression.refine import images_at_once, refine_
from kerneldna.conversion import reparameterize
from kerneldna.conversion.convert import plan, set_state
from kerneldna.layers.basis import Mixed
from kerneldna.layers.basis_group import mixed_layers
from kerneldna.network import copies, surgery
from kerneldna.reading.typed import typed
from kerneldna.registry import methods

ROUNDS = 2
ROUNDING = 0.05  # damage: up to here the answers of one kernel computed in two ways differ by rounding, in half precision too
log = logging.getLogger(__name__)


def compress(
    model: nn.Module,
    images: Images,
    *,
    budget: float = 0.5,
    of: str = "parameters",
    share: bool = True,
    refine: bool | int = True,
    layers: str | Sequence[str] = "*",
    kinds: str | Sequence[str] = KINDS,
    classifier: bool = False,
    limit: int = IMAGES,
    cache: str | Path | None = None,
    progress: bool = True,
) -> nn.Module:
    """Return a smaller copy of a trained network whose answers are nearly the same. No labels are needed.

    Layers of one shape in a stage share a basis of filters, each with a mix of its own, or have a basis each, whichever damages the
    answers less; which layers, and how many filters, is chosen by the damage measured. The copy is a network converted by
    `SharedBasis`: it trains, saves, fuses and exports like any other. The bases and mixes train even where the kernels that they
    stand for were frozen (`requires_grad=False`); what is not replaced, biases too, stays frozen.

    Args:
        model: A network in eval mode, not converted. It is not changed.
        images: A tensor `(N, C, H, W)` of some hundred training images, normalised as in training, or a loader of such batches or
            of (images, labels).
        budget: The share of the whole network to be kept, 0-1.
        of: What it is a share of: "parameters" or "macs", the multiply-accumulates for one image.
        share: Let layers share bases. Without it each has its own, which is low rank, layer by layer: more damage is expected of it
            at a budget of parameters, and fewer multiply-accumulates are left.
        refine: Refit on what the compressed network sees itself. A number is that of rounds: the first is of mixes, biases and
            BatchNorm statistics, layer by layer, each further one of the bases too. True is two.
        layers: Which layers may change: names of them or of what they are in, or patterns such as "layer3.*".
        kinds: Which kinds may change: "dense" and "pointwise" convolutions, "linear" for Linears on vectors.
        classifier: Whether the last Linear may change too.
        limit: How many images are looked at, at most: of a tensor at even distances, of a loader the first, so let it shuffle.
        cache: A folder to keep what is measured in: the same call, stopped and begun again, goes on from there.
        progress: Show progress bars, and print the plan.

    Raises:
        ValueError: If the network is in training mode, converted or fused already, or has no layer to compress, the images are not
            some that it takes, or the budget is out of reach; or the network computes something else where a layer is replaced, as
            one whose forward asks for the class of its layers does.
        RuntimeError: If its answers are not finite.

    Example:
        >>> small = kd.compress(model, images, budget=0.5)  # doctest: +SKIP
    """
    check_budget(budget, of)
    rounds_of(refine)
    measured = measure(
        model,
        images,
        layers=layers,
        kinds=kinds,
        classifier=classifier,
        limit=limit,
        cache=cache,
        progress=progress,
    )
    laid = planned(measured, budget=budget, of=of, share=share)
    if progress:
        print(laid)
    return carried_out(measured, laid, refine=refine, progress=progress)


@torch.inference_mode(False)  # what is made inside could never train
@torch.no_grad()
def carried_out(
    measured: Measured, laid: CompressionPlan, *, refine: bool | int = True, progress: bool = True
) -> nn.Module:
    """Return a compressed copy of a network that was measured.

    Args:
        measured: The network and what was measured on it.
        laid: What is to change, as `planned` returns it.
        refine: Refit on what the compressed network sees itself. A number is that of rounds: the first is of mixes, biases and
            BatchNorm statistics, layer by layer, each further one of the bases too. True is two.
        progress: Show progress bars.

    Raises:
        ValueError: If the network computes something else where a layer is replaced.
    """
    model = measured.model
    small = copies.copied(model)
    groups = [{"layers": list(each.layers), "rank": each.rank} for each in laid.groups]
    if not groups:
        log.info("nothing is compressed: the budget keeps all of the network")
        return small
    method = typed({"groups": groups}, methods.get("sharedbasis"), "groups")
    conversion = plan(model, method, input_size=measured.input_size)
    spectra = {
        each.layers: each for each in (*measured.shared, *(one for own in measured.own for one in own))
    }
    for group in laid.groups:
        assert group.rank is not None
        replaced = [surgery.get(small, name) for name in group.layers]
        made = mixed_layers(group.layers, replaced, rank=group.rank)
        basis, mixes = spectra[group.layers].factors(group.rank)
        for name, layer, mix in zip(group.layers, made, mixes, strict=True):
            layer.set_kernels_(basis.view_as(layer.filters), mix)
            surgery.replace_(small, name, layer)
    reparameterize.refuse_(small)
    set_state(small, plan=conversion.to_dict())
    _check_alike(measured, small)
    return refined_(measured, laid, small, refine=refine, progress=progress)


def _check_alike(measured: Measured, small: nn.Module) -> None:
    """Check that a compressed network answers as the original does with the same kernels in its own layers."""
    model, tried = measured.model, spread(measured.images, DAMAGE_IMAGES)
    kernels = {name: part.weight for name, part in small.named_modules() if isinstance(part, Mixed)}
    expected = answers(model, tried)
    with trying(model, kernels):
        wanted = answers(model, tried)
        off = apart(wanted, answers(small, tried), of=expected)
        # a network that draws random numbers gives other answers at every run
        if off <= ROUNDING or off <= 4 * apart(wanted, answers(model, tried), of=expected):
            return
    named = ", ".join(map(repr, list(kernels)[:3])) + (", ..." if len(kernels) > 3 else "")
    raise ValueError(
        f"with {named} replaced this {type(model).__name__} computes something else: its answers move by {off:.3g} of how far they "
        "differ between images; its forward may ask for the class of its layers, as isinstance(layer, nn.Conv2d) does, or change "
        "their weight: make it depend on neither, or leave such layers out by layers="
    )


@torch.inference_mode(False)
@torch.no_grad()
def refined_(
    measured: Measured,
    laid: CompressionPlan,
    small: nn.Module,
    *,
    refine: bool | int = True,
    progress: bool = True,
) -> nn.Module:
    """Refit a compressed network on what it sees itself, in place. The round that damages the answers least is kept, or none.

    Args:
        measured: The network and what was measured on it.
        laid: What was changed.
        small: The compressed network.
        refine: As for `carried_out`.
        progress: Show progress bars.
    """
    if not (rounds := rounds_of(refine)):
        return small
    tried = spread(measured.images, DAMAGE_IMAGES)
    expected = answers(measured.model, tried)
    found = [damage(expected, answers(small, tried))]
    best = copy.deepcopy(small.state_dict())
    for done in range(rounds):
        refine_once_(measured, laid, small, bases=done > 0, progress=progress)
        found.append(damage(expected, answers(small, tried)))
        if found[-1] <= min(found):
            best = copy.deepcopy(small.state_dict())
    log.info("damage as fitted and after each round: %s", ", ".join(f"{each:.4f}" for each in found))
    if min(found) < found[-1]:
        small.load_state_dict(best)
    return small


def rounds_of(refine: bool | int) -> int:
    """Return how many rounds of refinement were asked for.

    Raises:
        ValueError: If it is no number of rounds.
    """
    if not isinstance(refine, int) or refine < 0:
        raise ValueError(f"refine is {refine!r}; expected True, False, or a number of rounds, 0 or more")
    return ROUNDS if refine is True else int(refine)


def refine_once_(
    measured: Measured, laid: CompressionPlan, small: nn.Module, *, bases: bool, progress: bool = True
) -> None:
    """Run one round of refinement on a compressed network, in place.

    Args:
        measured: The network and what was measured on it.
        laid: What was changed.
        small: The compressed network.
        bases: Refit the bases before mixes, biases and BatchNorm statistics.
        progress: Show progress bars.
    """
    if bases:
        sharing = [each.layers for each in laid.groups]
        refit_bases_(measured.model, small, measured.images, sharing, progress=progress)
    at_once = spread(measured.images, images_at_once(measured.traced))
    refine_(measured.model, small, at_once, progress=progress)
