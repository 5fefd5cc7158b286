"""What is compared: a label, and the network it stands for.

resnet18                        a timm network
resnet18/kerneldna              with the paper's recipe of a method; resnet18/all is the plain network and every method
resnet18/kerneldna@throughput   its gates replaced by their means, which fold into the kernels
resnet18/kerneldna@plain        same depth, plain: the layers of the recipe, each with a kernel of its own, no gate
runs/digits                     a run folder of training, or a model folder; @throughput works here too
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from kerneldna.conversion.convert import Method
from kerneldna.deploy.calibrate import recalibrate_norms_
from kerneldna.models import create_model
from kerneldna.network import surgery
from kerneldna.reading.shown import shown
from kerneldna.registry import methods, suggest
from kerneldna.training.opened_run import OpenedRun

log = logging.getLogger(__name__)
VARIANTS = ("accuracy", "throughput", "plain")
SHARING = "kerneldna"


@dataclass(frozen=True)
class Contestant:
    """One network to compare.

    Attributes:
        label: What it is called in tables.
        build: Returns the network in eval mode: as it is trained, not fused, or as its folder holds it.
        mode: How it is fused: "accuracy" keeps its gates, "throughput" replaces them by their means. None is "accuracy", or
            leaves a network that is fused already as it is.
        accuracy: A fraction 0-1, None if unknown.
    """

    label: str
    build: Callable[[], nn.Module]
    mode: str | None = None
    accuracy: float | None = None


def parse(labels: Iterable[str], *, width: float = 1.0) -> list[Contestant]:
    """Return the networks that labels stand for, in their order, each once.

    Args:
        labels: As the module's docstring lists them.
        width: Factor on the channels of named networks; folders keep their own.

    Raises:
        ValueError: If a label is neither a folder nor a known network and method; the message names the nearest.
    """
    found: dict[str, Contestant] = {}
    for label in (each for given in labels for each in _expanded(given)):
        contestant = _parse(label, width)
        if contestant.label in found and label != contestant.label:
            contestant = replace(contestant, label=label)  # two folders of one name
        found.setdefault(contestant.label, contestant)
    return list(found.values())


def with_accuracy(contestants: Iterable[Contestant], accuracy: Mapping[str, float]) -> list[Contestant]:
    """Return the contestants with accuracies by label, fractions 0-1.

    Raises:
        ValueError: If a label is of no contestant, or a value no fraction.
    """
    contestants = list(contestants)
    labels = [each.label for each in contestants]
    for label, value in accuracy.items():
        if label not in labels:
            raise ValueError(suggest("contestant", label, labels))
        if not 0 <= value <= 1:
            raise ValueError(
                f"the accuracy of {label!r} is {value:g}; give a fraction 0-1, {value / 100:g} for {value:g} %"
            )
    return [replace(each, accuracy=accuracy.get(each.label, each.accuracy)) for each in contestants]


def _expanded(label: str) -> list[str]:
    backbone, slash, method = label.partition("/")
    if slash and method == "all" and not Path(label).is_dir():
        return [backbone, *(f"{backbone}/{name}" for name in methods.names())]
    return [label]


def _parse(label: str, width: float) -> Contestant:
    name, at, variant = label.partition("@")
    if at and variant not in VARIANTS:
        raise ValueError(suggest("variant", variant, VARIANTS))
    if Path(name).is_dir():
        return _folder(Path(name), variant)
    backbone, _, method = name.partition("/")
    if not timm.is_model(backbone):
        known = suggest("network", backbone, timm.list_models(), lister="timm.list_models()")
        raise ValueError(
            f"{known}; {shown(label)} is neither a folder nor NETWORK[/METHOD] of timm's networks"
        )
    if method and method not in methods.names():
        raise ValueError(suggest("method", method, methods.names()))
    if at and method != SHARING:
        raise ValueError(
            f"{label!r} asks for the variant {variant!r} of {method or 'a plain network'}; only {SHARING} has variants: "
            f"{backbone}/{SHARING}@{variant}"
        )

    def build() -> nn.Module:
        chosen: Method | None = methods.get(method).recipe(backbone) if method else None
        return _comparable(
            create_model(backbone, method=_unshared(chosen) if variant == "plain" else chosen, width=width)
        )

    return Contestant(label, build, "throughput" if variant == "throughput" else "accuracy")


def _folder(path: Path, variant: str) -> Contestant:
    if variant == "plain":
        raise ValueError(
            f"'{path}@plain': a folder holds one trained network; name the plain one, such as resnet18/{SHARING}@plain"
        )
    run = OpenedRun(path)
    run.folder.require_classifier()
    measured = run.folder.result_file.is_file() and variant != "throughput"
    accuracy = run.folder.read_figure("top1") if measured else None
    label = path.resolve().name + (f"@{variant}" if variant else "")
    return Contestant(label, run.network, variant or None, accuracy)


def _unshared(method: Any) -> Method | None:
    """Return a KernelDNA method with every child a layer of its own; None where the recipe adds no layer to the backbone."""
    if method.patterns is None:
        return None
    patterns = {stage: text.replace("S", "F") for stage, text in method.patterns.items()}
    return replace(method, patterns=patterns)


def _comparable(model: nn.Module) -> nn.Module:
    """Give an untrained network values such as trained ones have: numbers that vanish or overflow take a time of their own.

    A runtime may leave a kernel of zeros out, and a network whose norms have seen no image may end in infinities.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        # the last norm of a residual branch starts at 0
        if isinstance(module, nn.modules.batchnorm._NormBase) and weight is not None and not weight.any():
            torch.nn.init.ones_(weight)
    recalibrate_norms_(model, [surgery.probe(model, surgery.input_size_of(model), batch=2)], progress=False)
    return model.eval()
