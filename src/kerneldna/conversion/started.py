"""A network's start from weights: plain ones before it is converted, so that children start from them, a converted one's after."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import timm
from torch import nn

from kerneldna.conversion.convert import carry_out_
from kerneldna.conversion.plan import Plan
from kerneldna.network import surgery
from kerneldna.network.weights import ENDINGS, Filled, Weights, fill_, read_weights
from kerneldna.reading.shown import said, shown

log = logging.getLogger(__name__)


def weights_of(source: str | Path | Weights) -> Weights:
    """Return the weights that a file, a folder or a timm name stands for; a file or folder of that name comes first.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or neither a file, a folder nor a name of timm.
        RuntimeError: If timm's weights cannot be fetched.
    """
    if isinstance(source, Weights):
        return source
    if Path(source).exists() or isinstance(source, Path) or source.endswith(ENDINGS) or "/" in source:
        return read_weights(source)
    if not timm.is_model(source.partition(".")[0]):
        raise ValueError(
            f"model.weights is {shown(source)}, which is no file, no folder and no network of timm; give one of "
            f"{', '.join(ENDINGS)}, a run folder, or a name such as resnet18.a1_in1k"
        )
    with fetching(source, True):
        return Weights(source, timm.create_model(source, pretrained=True).state_dict())


@contextmanager
def fetching(name: str, wanted: bool) -> Iterator[None]:
    """Word what goes wrong while timm fetches weights, where they are wanted: its libraries raise whatever they like.

    Raises:
        RuntimeError: If something does.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # plain ones are this library's own, or about arguments; the hub's errors are of classes of their own
        if not wanted or type(error) in (TypeError, ValueError):
            raise
        raise RuntimeError(
            f"timm could not get the pretrained weights of {name} ({said(error)}); give a file that this machine has by "
            "weights=, or train from a random start with pretrained=False"
        ) from error


def start_(
    model: nn.Module, weights: Weights | None, laid: Plan | None, classes: Sequence[str] | None
) -> None:
    """Give a network its weights and convert it, in place.

    Args:
        model: The plain network.
        weights: What it starts from; None leaves it as it is.
        laid: The plan, made for it; None leaves it plain.
        classes: Those that it is for.

    Raises:
        ValueError: If less than half of the network finds weights.
    """
    plain = set(model.state_dict())
    after = False
    if weights is not None and laid is not None:
        skeleton = surgery.skeleton(model)
        carry_out_(skeleton, laid, rehearsed=True)
        after = any(name in weights.tensors for name in set(skeleton.state_dict()) - plain)
    filled = None if weights is None or after else fill_(model, weights, classes=classes)
    if laid is not None:
        carry_out_(model, laid, rehearsed=True)
    own = [name for name in model.state_dict() if name not in plain]
    if weights is not None and after:
        filled = fill_(model, weights, classes=classes, own=own)
    elif filled is not None and own:
        added = tuple(f"{name}: the method's own" for name in own)
        filled = Filled(filled.source, filled.loaded, (*filled.new, *added), filled.unfit)
    if filled is not None:
        log.log(logging.WARNING if filled.unfit else logging.INFO, "%s", filled)
