"""What an exported file says of itself, beside the graph: text by key, in the metadata that its format has.

label_names          the classes in the order of the outputs, a JSON list
input_size           [3, 128, 128]: channels, height and width of an image
mean, std, ...       what an image becomes before the network sees it (`kerneldna.data.preprocessing`)
architecture         the backbone's timm name
outputs              "logits" of a classifier, "probabilities" of one with its preprocessing inside (`kerneldna.deploy.inside`);
                     "boxes, labels, scores, masks" of a whole detector
batch                the batch size, where it is fixed
dtype                the type of the images, in files of compiled code, which does not look at it itself
method               the method that it was converted with; "none" for a plain network
kerneldna            of the library that wrote the file

The first three are named as timm's `pretrained_cfg` names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import nn

from kerneldna.conversion.convert import classes_of, network_of, state_of
from kerneldna.data.preprocessing import Preprocessing, preprocessing_of
from kerneldna.network.surgery import InputSize

DTYPE = "dtype"
LABELS = "label_names"
LABELS_BEFORE = "kerneldna.classes"  # what 0.1 files call them


def facts_of(
    model: nn.Module, *, size: InputSize | None, batch: int | None = None, whole: bool = True
) -> dict[str, str]:
    """Return what a file is to say of the network in it.

    Args:
        model: A network or a detector.
        size: `(C, H, W)` of an image that the file takes; None where it takes any.
        batch: The batch size, where it is fixed.
        whole: Whether the file holds all of it, and so gives classes.
    """
    state = state_of(network_of(model))
    method = (state.get("plan") or {}).get("method", "none")
    facts = {"kerneldna": version("kerneldna"), "method": method}
    if name := (state.get("created") or {}).get("name"):
        facts["architecture"] = name
    if size is not None:
        facts["input_size"] = json.dumps(list(size))
        how = preprocessing_of(model)
        if how is not None and whole and size[0] == 3:
            facts |= how.at(*size[1:]).facts()
    if batch is not None:
        facts["batch"] = str(batch)
    if whole:
        facts["outputs"] = ", ".join(_outputs(state_of(model).get("detector")))
    classes = classes_of(model) if whole else None
    if classes is not None:
        facts[LABELS] = json.dumps(classes)
    return facts


def knowing(run: Any, facts: Mapping[str, str]) -> Any:
    """Return `run`, the function of an exported file, with what the file says of itself.

    Its attributes are then `facts`, the text by key; `classes`, the names of the classes, and `preprocessing`, each None where the
    file does not say it.

    Args:
        run: The function.
        facts: The file's metadata; other programs' keys do no harm.

    Raises:
        ValueError: If they are damaged.
    """
    run.facts = dict(facts)
    run.classes = _names(facts)
    run.preprocessing = Preprocessing.read(facts)
    return run


def _outputs(detector: Mapping[str, Any] | None) -> tuple[str, ...]:
    if detector is None:
        return ("logits",)
    return ("boxes", "labels", "scores", "masks")[: 4 if detector["kind"] == "maskrcnn" else 3]


def _names(facts: Mapping[str, str]) -> tuple[str, ...] | None:
    key = LABELS if LABELS in facts else LABELS_BEFORE
    text = facts.get(key)
    try:
        names = json.loads(text) if text else None
        if names is not None and not isinstance(names, list):
            raise ValueError("expected a list")
    except ValueError as error:
        raise ValueError(f"the file's metadata {key} are damaged ({error}); export it again") from error
    return None if names is None else tuple(map(str, names))
