"""What decides which objects a detector of torchvision finds, beside its weights: thresholds, counts, the size of images.

They are plain attributes, which users set on a detector that is made; a file notes them all.

    settings_of(detector)["roi_heads.score_thresh"]    # 0.05
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from kerneldna.reading.shown import under
from kerneldna.reading.typed import Within, typed
from kerneldna.registry import suggest

_Number = Annotated[float, Within(-1e6, 1e6)]
_Count = Annotated[int, Within(0, 2**20)]
_Side = Annotated[int, Within(1, 2**16)]


@dataclass(frozen=True)
class _Proposals:
    training: _Count
    testing: _Count


# by the module and attribute that hold them; RetinaNet has those of `roi_heads` itself
_KINDS: dict[str, Any] = {
    "rpn._pre_nms_top_n": _Proposals,
    "rpn._post_nms_top_n": _Proposals,
    "rpn.nms_thresh": _Number,
    "rpn.score_thresh": _Number,
    "rpn.min_size": _Number,
    "roi_heads.score_thresh": _Number,
    "roi_heads.nms_thresh": _Number,
    "roi_heads.detections_per_img": _Count,
    "score_thresh": _Number,
    "nms_thresh": _Number,
    "detections_per_img": _Count,
    "topk_candidates": _Count,
    "transform.min_size": tuple[_Side, ...],
    "transform.max_size": _Side,
    "transform.image_mean": tuple[_Number, _Number, _Number],
    "transform.image_std": tuple[_Number, _Number, _Number],
    "transform.size_divisible": _Side,
    "transform.fixed_size": tuple[_Side, _Side] | None,
}


def settings_of(detector: nn.Module) -> dict[str, Any]:
    """Return the settings of a detector as plain data, by where they stand."""
    found = {}
    for name in _KINDS:
        holder = _holder(detector, name)
        attribute = name.rpartition(".")[2]
        if attribute in vars(holder):
            found[name] = _plain(vars(holder)[attribute])
    return found


def set_settings_(detector: nn.Module, settings: Mapping[str, Any]) -> None:
    """Give a detector settings that `settings_of` returned.

    Raises:
        ValueError: If it has none of a name, or a value is of another kind.
    """
    check_settings(settings)
    known = settings_of(detector)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(suggest("setting of this detector", name, known))
        holder, attribute = _holder(detector, name), name.rpartition(".")[2]
        is_list = isinstance(value, list) and not isinstance(vars(holder)[attribute], list)
        setattr(holder, attribute, tuple(value) if is_list else value)


def check_settings(settings: Mapping[str, Any], at: str = "settings") -> None:
    """Check settings against their kinds.

    Raises:
        ValueError: If one is unknown, or of another kind; the message names it.
    """
    for name, value in settings.items():
        if name not in _KINDS:
            raise ValueError(f"{under(at, name)}: {suggest('setting', name, _KINDS)}")
        typed(value, _KINDS[name], under(at, name))


def _holder(detector: nn.Module, name: str) -> nn.Module:
    path = name.rpartition(".")[0]
    part = getattr(detector, path, None) if path else detector
    return part if isinstance(part, nn.Module) else nn.Module()


def _plain(value: Any) -> Any:
    """Return a value with dictionaries of their own, and lists in the place of tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
