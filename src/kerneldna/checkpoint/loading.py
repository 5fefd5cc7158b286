"""`load`: a network out of a folder; shapes are compared before memory is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kerneldna.checkpoint.building import built, built_on_meta
from kerneldna.checkpoint.folder import (
    CONFIG,
    WEIGHTS,
    check_unchanged,
    held,
    read_config,
    read_header,
    read_weights,
)
from kerneldna.layers.marks import check_loans
from kerneldna.network import surgery
from kerneldna.network.computed import computed_in
from kerneldna.network.tensors import check_finite, fill_, made_later, mismatch, shapes, torn


def load(folder: str | Path, *, model: nn.Module | None = None, allow_nonfinite: bool = False) -> nn.Module:
    """Load a network from a folder that `save` wrote.

    Args:
        folder: With `config.json` and `model.safetensors`.
        model: For a network that `create_model` did not make: the same network as it was before its conversion. It is converted
            (and fused, if the saved one was) in place; of a detector, the network that it was created on.
        allow_nonfinite: Load weights with NaN or infinity in them too, to look at them or repair them.

    Returns:
        The network or detector with its weights and their types, in eval mode, on the CPU unless `model` is elsewhere.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or was changed, or the weights are not those of the network; the message says what is
            missing, too much, of another shape or type, or not finite. `model` is then as it was.
    """
    config_file, weights_file = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    noted = read_config(config_file)
    header = held(read_header(weights_file), noted)
    if model is None and not noted.get("created"):
        raise ValueError(
            f"{config_file} names no network to create: one of your own was saved; in Python, pass it as it was before its "
            "conversion: kerneldna.load(folder, model=network)"
        )
    skeleton = built_on_meta(noted, None if model is None else surgery.skeleton(model), config_file)
    expected = shapes(skeleton, header.buffers)
    try:
        later = made_later(skeleton, header)
        problems = mismatch(
            expected, {name: shape for name, shape in header.every.items() if name not in later}
        )
    except ValueError as error:
        raise ValueError(
            f"{config_file}, same: {error}; restore the file, or save the network again"
        ) from error
    if problems:
        raise ValueError(
            f"{weights_file} is not the network of {CONFIG}: {'; '.join(problems)}"
            f"{_computed(expected, header.every) or _other_size(noted, model)}"
        )
    check_unchanged(noted, config_file, weights_file)
    given = held(read_weights(weights_file), noted)
    if not allow_nonfinite:
        check_finite(
            given, str(weights_file), "restore it, or train again; allow_nonfinite=True opens it all the same"
        )
    if pair := torn(skeleton, given):
        raise ValueError(
            f"{weights_file} is not the network of {CONFIG}: {pair} are one parameter in this {type(skeleton).__name__}, and two "
            "of different numbers in the file; pass model= with two, as the network had that was saved"
        )
    network = built(noted, model, config_file)
    check_loans(network, "load")
    fill_(network, given)
    return network.eval()


def _computed(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    name = computed_in(expected.keys() - given.keys(), given)
    return (
        ""
        if name is None
        else f"; {name} was computed anew at every call (a parametrization, weight_norm, spectral_norm or pruning) in the network "
        "that was saved: pass model= with the same on its layers, or write the weights out before saving, as torch's removers and "
        "kd.fuse_ do"
    )


def _other_size(noted: Mapping[str, Any], model: nn.Module | None) -> str:
    wanted = noted["plan"]["before"]["parameters"] if noted.get("plan") else None
    if model is None or wanted in (None, surgery.parameters_of(model)):
        return ""
    return (
        f"; the plan was made for a network of {wanted:,} parameters, this {type(model).__name__} has "
        f"{surgery.parameters_of(model):,}: pass the network as it was before its conversion"
    )
