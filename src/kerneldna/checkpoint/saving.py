"""`save`: a network into a folder, after a look whether `load` could open it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers import get_act_layer, get_norm_layer
from torch import Tensor, nn

from kerneldna.checkpoint.building import built_on_meta
from kerneldna.checkpoint.folder import CONFIG, FORMAT, WEIGHTS, Config
from kerneldna.conversion.convert import network_of, plan_of, state_of
from kerneldna.detection.settings import settings_of
from kerneldna.files import atomic_with_others, to_json
from kerneldna.layers.marks import Borrower, check_loans
from kerneldna.network.computed import first_in_words
from kerneldna.network.likeness import differences
from kerneldna.network.tensors import Stored, check_finite, made_later, mismatch, shapes, stored, torn
from kerneldna.network.wrapped import refuse_wrapped
from kerneldna.reading.checksum import checksum_of_data, checksum_of_file
from kerneldna.reading.shown import said
from kerneldna.reading.typed import typed


def save(
    model: nn.Module, folder: str | Path, *, by_name: bool = True, allow_nonfinite: bool = False
) -> Path:
    """Save `model` to a folder, both files whole or not at all.

    What `create_model` made is built again first, without memory, and compared: what `save` returns from, `load` opens. Of changes
    made to it since, a new classifier is noted (timm's `reset_classifier`, or another Linear in its place); others are refused.
    Hooks are not saved.

    Args:
        model: A network of `create_model`, or any network, converted or not, fused or not, or a detector of `create_detector`.
        folder: Made if missing; a network in it is overwritten.
        by_name: Note how `create_model` made the network. False is for one that was changed since: it is then saved as one of your
            own, and `load` needs `model=`.
        allow_nonfinite: Save weights with NaN or infinity in them too; `load` needs the same then.

    Returns:
        The folder.

    Raises:
        ValueError: If `load` could not open it with equal outputs, or weights are not finite; the message names the layer, tensor
            or argument. No file is written then.
    """
    folder = Path(folder)
    refuse_wrapped(model, "save")
    check_loans(model, "save")
    _check_places(network_of(model))
    given = stored(model)
    if not allow_nonfinite:
        remedy = "train it anew, or pass allow_nonfinite=True to save it as it is"
        check_finite(given, f"this {type(model).__name__}", remedy)
    noted = _noted(model, given, by_name=by_name)
    own = checksum_of_data(noted)
    try:
        with atomic_with_others(folder / CONFIG) as config:
            weights = config.with_name(WEIGHTS)
            save_file(dict(given.tensors), weights, metadata={"format": "pt"})
            checksums = {"config": own, "weights": checksum_of_file(weights)}
            config.write_text(to_json({**noted, "checksums": checksums}, indent=2) + "\n", encoding="utf-8")
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"the weights cannot be stored: {said(error)}") from error
    return folder


def _check_places(network: nn.Module) -> None:
    """Check that no layer that borrows stands where its plan has another: `load` would give that place a layer of its own.

    Raises:
        ValueError: If one does; the message names both places.
    """
    if (plan := plan_of(network)) is None:
        return
    modules = dict(network.named_modules(remove_duplicate=False))
    for change in plan.changes:
        layer = modules.get(change.name)
        if isinstance(layer, Borrower) and layer.name != change.name:
            raise ValueError(
                f"the layer {layer.name!r} stands in the place of {change.name!r} too, which {plan.method} made a layer of "
                "its own, so that load could not build the network; let one layer stand in several places before kd.convert_"
            )


def _noted(model: nn.Module, given: Stored[Tensor], *, by_name: bool) -> dict[str, Any]:
    """Return what config.json is to say of `model`; for one made by name, what it describes is compared with it.

    Raises:
        ValueError: If `load` could not read it, or would build another network of it.
    """
    noted = {"format": FORMAT, "kerneldna": version("kerneldna"), **state_of(network_of(model))}
    if detector := state_of(model).get("detector"):
        noted["detector"] = {**detector, "settings": settings_of(model)}
        noted.pop("classes", None)  # of the classifier that the backbone was
    tensors = {"same": given.same, "buffers": given.buffers, "versions": given.versions}
    more = {**tensors, "parts": _parts_of(network_of(model))}
    noted |= {name: value for name, value in more.items() if value}
    if not by_name:
        noted.pop("created", None)
    try:
        typed(noted, Config)
    except ValueError as error:
        raise ValueError(
            f"this network cannot be saved, {error}. {_by_word(noted)}{_remedy(noted)}"
        ) from error
    if not noted.get("created"):
        return noted
    problems = _problems(model, given, noted)
    if problems and (head := _head_of(network_of(model))) is not None:
        other = {**noted, "head": head}
        if len(other.get("classes") or ()) != head["num_classes"]:
            other.pop("classes", None)  # those of the former classifier
        if not _problems(model, given, other):
            return other
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"this {type(model).__name__} is no longer what was created by name, so load could not build it: "
            f"{'; '.join(problems[:3])}{more}. {_computing(model)}{_remedy(noted)}"
        )
    return noted


def _parts_of(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what is to be said of networks inside one that were converted or fused by themselves, such as an encoder."""
    fused = state_of(network).get("fused")
    folded = [] if fused is None else [list(pair) for pair in fused.get("folded", ())]
    parts: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        part = {key: value for key, value in state_of(module).items() if key in ("plan", "fused")}
        pairs = part.get("fused", {}).get("folded", ())
        if fused and all([f"{name}.{inner}" for inner in pair] in folded for pair in pairs):
            part.pop("fused", None)  # by fusing the whole, which load does too
        if name and part:
            parts[name] = part
    return parts


def _by_word(noted: Mapping[str, Any]) -> str:
    """Say by what word timm knows a class of activations or norms that was given to `create_model`."""
    for argument, value in (noted.get("created") or {}).items():
        word = getattr(value, "__name__", "").lower()
        for find in (get_act_layer, get_norm_layer) if word else ():
            try:
                known = find(word) is not None
            except (KeyError, AssertionError):
                continue
            if known:
                return f"Pass {argument}={word!r} to create_model. "
    return ""


def _computing(model: nn.Module) -> str:
    """Say what to do where it is because layers compute their weights that a network differs."""
    found = first_in_words(model)
    return found and f"{found}; so does kd.fuse_. "


def _remedy(noted: Mapping[str, Any]) -> str:
    if noted.get("detector"):
        return "Make the detector anew with create_detector and the names of its classes, and load the weights that fit"
    return "save(model, folder, by_name=False) saves a network as one of your own, which load(folder, model=...) opens"


def _problems(model: nn.Module, given: Stored[Tensor], noted: Mapping[str, Any]) -> list[str]:
    """Say in what the network that `noted` describes differs from `model`."""
    with torch.random.fork_rng(devices=[]):
        built = built_on_meta(noted, None, Path(CONFIG))
    later = made_later(built, given)
    found = {
        name: (tuple(value.shape), value.is_floating_point())
        for name, value in given.every.items()
        if name not in later
    }
    problems = [*mismatch(shapes(built, given.buffers), found), *differences(built, model)]
    if not problems and (pair := torn(built, given)):
        return [f"{pair} were one parameter, and are two"]
    return problems


def _head_of(network: nn.Module) -> dict[str, int] | None:
    """Return what `reset_classifier` of a timm network is to be called with for the classifier that it has now."""
    get: Any = getattr(network, "get_classifier", None)
    if not callable(get) or not callable(getattr(network, "reset_classifier", None)):
        return None
    classifier = get()
    if isinstance(classifier, nn.Linear):
        return {"num_classes": classifier.out_features}
    return {"num_classes": 0} if isinstance(classifier, nn.Identity) else None
