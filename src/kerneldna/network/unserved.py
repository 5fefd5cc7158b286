"""Networks that cannot be converted as they are, and what to do about each."""

from __future__ import annotations

from collections import Counter

from torch import nn

UNSERVED = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SERVED = "nn.Conv2d, and nn.Linear on channels-last maps"


def refuse_detector(model: nn.Module, action: str, function: str) -> None:
    """Check that a network is no whole detector of torchvision.

    Args:
        model: Any network.
        action: What is about to be done with it, for the message: "convert".
        function: What does it: "kd.convert_".

    Raises:
        ValueError: If it is one.
    """
    detects = type(model).__module__.startswith("torchvision.models.detection")
    if detects and hasattr(model, "transform") and hasattr(model, "backbone"):
        raise ValueError(
            f"this {type(model).__name__} is a whole detector, whose parts run on what they find; {action} its backbone, "
            f"{function}(detector.backbone, ...)"
        )


def refuse_unserved(model: nn.Module) -> None:
    """Check that a network has modules that can be replaced.

    Raises:
        ValueError: If it is quantised or a whole detector; the message names the way.
    """
    kind = type(model).__name__
    refuse_detector(model, "convert", "kd.convert_")
    quantised = [
        name or kind for name, module in model.named_modules() if ".quantized" in type(module).__module__
    ]
    if quantised:
        raise ValueError(
            f"this {kind} is quantised ({quantised[0]!r} is), so that its kernels cannot be trained; convert and train it "
            "before quantising, or quantise the exported file by kd.export(compute='int8')"
        )


def remedy(model: nn.Module) -> str:
    """Return what to do about a network that did not run on one image."""
    odd = Counter(type(module).__name__ for module in model.modules() if isinstance(module, UNSERVED))
    volumes = {name for name in odd if name.endswith(("1d", "3d"))}
    if volumes:
        counted = ", ".join(f"{odd[name]} {name}" for name in sorted(volumes))
        return f"it has {counted}, for sequences, video or volumes, which are not served: {SERVED} are"
    return "pass input_size=(C, H, W), or example_inputs=, what its forward takes"
