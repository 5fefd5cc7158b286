"""The loss of a student that is to answer as its teacher does: no labels are needed.

    T^2 KL(softmax(teacher / T) || softmax(student / T))  +  weight * mean over stages of |student - teacher|^2 / var(teacher)

The first term is that of Hinton et al. (arXiv 1503.02531); of one output alone, whose softmax is always 1, it is the squared error
over the teacher's variance. The second compares the maps behind each stage, which both networks have
alike where one was made of the other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kerneldna.conversion.convert import classes_of
from kerneldna.conversion.stages import find_stages
from kerneldna.data.preprocessing import preprocessing_of
from kerneldna.network import surgery
from kerneldna.network.outputs import logits_in
from kerneldna.network.wrapped import unwrapped

log = logging.getLogger(__name__)


class Imitation:
    """Compares a student with its teacher on images.

    Not a module on purpose: what holds one does not train, save or count the teacher.

    Args:
        teacher: A trained network, from images `(B, C, H, W)` to logits `(B, classes)`, or `(B, classes, H', W')` of pixels, alone
            or among other outputs by the name "logits" or "out"; or one in a wrapper (compiled, parallel, averaged). It is put in
            eval mode.
        temperature: Of the softmax, T.
        features: Weight of the second term; 0 leaves it out.

    Raises:
        ValueError: If the temperature or the weight is none.
    """

    def __init__(self, teacher: nn.Module, *, temperature: float = 2.0, features: float = 1.0) -> None:
        if not temperature > 0 or not features >= 0:
            raise ValueError(
                f"temperature is {temperature:g} and features {features:g}; expected a temperature above 0, and a weight of 0 or "
                "more"
            )
        self.teacher = unwrapped(teacher).eval()  # whose stages have the names that the student's have
        self.temperature, self.features = temperature, features
        self._told = False
        self.stages = find_stages(self.teacher) if features else []

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self.teacher.to(device)

    def compare(self, student: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run both networks on images `(B, C, H, W)`.

        Args:
            student: In the mode that it is to run in, with modules of the names of the teacher's stages; others are not compared.
            images: On the device of both.

        Returns:
            The student's logits, and the terms of the loss by name: "logits" and, where there are stages, "features".

        Raises:
            ValueError: If the two give logits of different shapes, or one gives no tensor of logits.
        """
        expected: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        shared = [name for name in self.stages if _has(student, name)]

        def note(name: str, output: Tensor) -> None:
            expected[name] = output.detach().clone()  # an activation behind it may overwrite it

        def measure(name: str, output: Tensor) -> None:
            if name in expected and expected[name].shape == output.shape:
                target = expected[name].float()
                terms[name] = (output.float() - target).square().mean() / target.var().clamp_min(1e-12)

        with torch.no_grad(), _watched(self.teacher, shared, note):
            wanted = _logits("teacher", self.teacher, images)
        with _watched(student, shared, measure):
            logits = _logits("student", student, images)
        if logits.shape != wanted.shape:
            raise ValueError(
                f"the teacher gives logits {tuple(wanted.shape)}, the student {tuple(logits.shape)}; they need the same classes"
            )
        found = {"logits": self._difference(wanted.float(), logits.float())}
        if self.features and not terms and not self._told:
            self._told = True
            log.warning(
                "no map of the student has place and shape of one behind the teacher's stages (%s): the answers alone are learnt",
                ", ".join(self.stages) or "none found",
            )
        if terms:
            found["features"] = self.features * torch.stack(list(terms.values())).mean()
        return logits, found

    def _difference(self, wanted: Tensor, logits: Tensor) -> Tensor:
        if wanted.ndim == 1 or wanted.shape[1] == 1:
            # the size stands in for the variance where a batch has one image, or images of one answer
            scale = wanted.var(correction=0).clamp_min(1e-3 * float(wanted.square().mean()) + 1e-12)
            return (logits - wanted).square().mean() / scale
        t = self.temperature
        answers, given = (F.log_softmax(each / t, dim=1) for each in (wanted, logits))
        return t**2 * F.kl_div(given, answers, reduction="none", log_target=True).sum(1).mean()


def check_alike(teacher: nn.Module, student: nn.Module) -> None:
    """Check what is noted on a teacher and its student: that output for output they mean the same, of the same images.

    Images that were prepared otherwise for the teacher's training are warned of.

    Raises:
        ValueError: If their classes are others, or in another order.
    """
    known, learnt = (list(classes_of(each) or ()) for each in (teacher, student))
    if known and learnt and known != learnt:
        place = next(
            (i for i, both in enumerate(zip(known, learnt, strict=False)) if both[0] != both[1]), None
        )
        said = (
            f"{len(known)} classes and the student {len(learnt)}"
            if place is None
            else f"class {known[place]!r} at output {place}, where the student has {learnt[place]!r}"
        )
        raise ValueError(f"the teacher has {said}; give a teacher of the student's classes, in their order")
    levels = [how and (tuple(how.mean), tuple(how.std)) for how in map(preprocessing_of, (teacher, student))]
    if None not in levels and levels[0] != levels[1]:
        log.warning(
            "the teacher was trained on images of mean %s and std %s, and the student's are of mean %s and std %s: its answers "
            "may be worse than it knows",
            *(listed for each in levels if each for listed in each),
        )


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms of a loss."""
    return torch.stack(list(terms.values())).sum()


def _logits(who: str, network: nn.Module, images: Tensor) -> Tensor:
    own = next((p.dtype for p in network.parameters() if p.is_floating_point()), images.dtype)
    found = network(images.to(own, copy=True))  # a network may write over what it is given
    return logits_in(found, who, mode="training" if network.training else "eval")


def _watched(model: nn.Module, names: list[str], note: Any) -> ExitStack:
    """Give the output of each module called to `note`, with its name, while the block runs."""
    hooks = ExitStack()
    for name in names:
        hook = surgery.get(model, name).register_forward_hook(
            lambda _, __, output, name=name: note(name, output) if isinstance(output, Tensor) else None
        )
        hooks.callback(hook.remove)
    return hooks


def _has(model: nn.Module, name: str) -> bool:
    try:
        surgery.get(model, name)
    except ValueError:
        return False
    return True
