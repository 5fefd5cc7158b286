"""A network built as its config.json describes it: created by name or given, converted, with its classifier, fused, a detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kerneldna.conversion.convert import carry_out_, set_state, state_of
from kerneldna.conversion.plan import Plan
from kerneldna.deploy.fuse import fuse_as_
from kerneldna.detection.detectors import create_detector
from kerneldna.detection.settings import set_settings_
from kerneldna.layers.marks import numbers_follow
from kerneldna.models import create_model
from kerneldna.network import surgery
from kerneldna.reading.shown import said


def built(noted: Mapping[str, Any], model: nn.Module | None, path: Path) -> nn.Module:
    """Build the network that a config describes, on torch's current device, or out of `model`."""
    try:
        model = create_model(**noted["created"]) if model is None else model
        if noted.get("input_size"):
            set_state(model, input_size=noted["input_size"])
        model.eval()
        parts = {name: (surgery.get(model, name), part) for name, part in noted.get("parts", {}).items()}
        for network, described in ((model, noted), *parts.values()):
            if described.get("plan"):
                _convert_(network, Plan.from_dict(described["plan"]))
        if noted.get("head"):
            classifier: Any = model
            classifier.reset_classifier(**noted["head"])
        # in the order that they were fused in
        for network, described in (*parts.values(), (model, noted)):
            if described.get("fused") and not state_of(network).get("fused"):
                fuse_as_(network, described["fused"])
        for key in ("classes", "preprocessing"):
            if noted.get(key):
                set_state(model, **{key: noted[key]})
        if not (given := noted.get("detector")):
            return model
        detector = create_detector(model, **{key: value for key, value in given.items() if key != "settings"})
        set_settings_(detector, given.get("settings", {}))
        return detector
    except MemoryError:
        raise
    # what is written there reaches the code of timm, torch and the methods, which raise whatever they like
    except Exception as error:
        raise ValueError(f"{path} describes no network that can be built: {said(error)}") from error


def _convert_(network: nn.Module, laid: Plan) -> None:
    """Carry a plan out, or check that the network was converted by such a one.

    Raises:
        ValueError: If it was converted by another, in which the same names may stand for something else.
    """
    if not (own := state_of(network).get("plan")):
        with numbers_follow():
            carry_out_(network, laid)
        return
    first, second = (
        (plan.method, plan.families, {(change.name, change.group) for change in plan.changes})
        for plan in (laid, Plan.from_dict(own))
    )
    if first != second:
        raise ValueError(
            f"the {type(network).__name__} given was converted already, and by another plan, in which other layers share; give it "
            "as it was before its conversion"
        )


def built_on_meta(noted: Mapping[str, Any], model: nn.Module | None, path: Path) -> nn.Module:
    """Build the network that a config describes without memory for it."""
    try:
        with torch.device("meta"):
            return built(noted, model, path)
    except ValueError as error:
        # some networks compute with numbers while they are built
        if model is not None or "meta tensor" not in str(error):
            raise
        return built(noted, model, path)
