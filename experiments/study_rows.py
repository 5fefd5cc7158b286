"""The rows of each study: which networks are compared, and what each is called in its table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

PEERS = ("se", "cbam", "eca", "cgc", "dcd", "condconv", "dyconv", "odconv", "kernelwarehouse")
MOBILE = ("dyconv", "odconv", "kernelwarehouse")  # the peers in the paper's rows of MobileNetV2
SETS = ("cifar10", "cifar100")
STUDIES = (
    "equal_size",
    "bottleneck",
    "pointwise",
    "adapter",
    "table5",
    "table3",
    "peers",
    "larger",
    "table1",
    "table4",
    "modulation",
)
_COPYING = {"channel": False, "spatial": False, "filter": False}


@dataclass(frozen=True)
class Cell:
    """One row of a study: what it is called there, and the run behind it."""

    label: str
    backbone: str
    method: str | None = None
    options: str = "{}"  # of the method, as YAML
    width: float | None = None  # that of the size where not given
    against: tuple[
        str, ...
    ] = ()  # labels of the rows it is compared with: by default the first of its backbone

    @property
    def slug(self) -> str:
        """A name for files: cells of one slug are one run."""
        values: dict[str, Any] = {} if self.width is None else {"width": self.width}
        options = ",".join(
            f"{key}={_plain(value)}"
            for key, value in sorted({**yaml.safe_load(self.options), **values}.items())
        )
        return "-".join(part for part in (self.backbone, self.method or "plain", options) if part)


def cells(study: str, size: str) -> list[Cell]:
    """Return the rows of a study, its reference first.

    Raises:
        ValueError: If there is no such study.
    """
    if study not in STUDIES:
        raise ValueError(f"no study {study!r}; known: {', '.join(STUDIES)}")
    return _ROWS[study](size)


def sets(study: str) -> tuple[str, ...]:
    """Return the data sets that a study is run on unless one is named."""
    return SETS if study in ("table1", "modulation") else SETS[:1]


def _equal_size(size: str) -> list[Cell]:
    # factors on the width of the size: 0.14 to 0.30 of ResNet18 where it is a quarter
    scale = 4 if size == "full" else 1
    narrow = {
        w: Cell(f"plain, width {w * scale:.2f}", "resnet18", width=round(w * scale, 4))
        for w in (0.14, 0.18, 0.22, 0.30)
    }
    # each beside the plain network of about its size, and what it was made from
    small, middle, large = (("plain", narrow[w].label) for w in (0.18, 0.22, 0.30))
    every = {f"layer{i}": "FS-SF" for i in range(1, 5)}
    return [
        Cell("plain", "resnet18"),
        narrow[0.18],
        _copying("copying FS-SF", "FS-SF", against=small),
        _kerneldna("KernelDNA FS-SF", patterns=_both("FS-SF"), against=small),
        narrow[0.22],
        narrow[0.14],
        narrow[0.30],
        _copying("copying FS-SF-SF", "FS-SF-SF", against=middle),
        _kerneldna("KernelDNA FS-SF-SF", against=middle),
        _kerneldna("deeper, FF-FF-FF", patterns=_both("FF-FF-FF"), against=large),
        _kerneldna("copying FS-SF, all stages", patterns=every, **_COPYING, against=small),
        _copying("copying FS-SF, widened", "FS-SF", width=_WIDENED * scale),
    ]


def _bottleneck(size: str) -> list[Cell]:
    patterns = {"layer3": "S-F-S-F-S-F", "layer4": "F-S-F"}
    scale = 8 if size == "full" else 1
    shared: dict[str, Any] = {"width": 0.125 * scale, "patterns": patterns, "against": _BOTH_PLAIN}
    return [
        Cell("plain", "resnet50", width=0.125 * scale),
        Cell("plain, narrowed", "resnet50", width=_NARROW50 * scale),
        _kerneldna("copying", "resnet50", **shared, **_COPYING),
        _kerneldna("KernelDNA", "resnet50", **shared),
    ]


def _pointwise(size: str) -> list[Cell]:
    shared: dict[str, Any] = {"width": 1.0, "against": _BOTH_PLAIN}
    return [
        Cell("plain", "mobilenetv2_050", width=1.0),
        Cell("plain, narrowed", "mobilenetv2_050", width=_NARROW_MOBILE),
        _kerneldna("copying", "mobilenetv2_050", **shared, **_COPYING),
        _kerneldna("KernelDNA", "mobilenetv2_050", **shared),
    ]


def _adapter(size: str) -> list[Cell]:
    rows = []
    for pattern in ("FS-SF-SF", "FS-SF"):
        copying, published = f"copying {pattern}", f"paper's, gate, {pattern}"
        rows.append(_copying(copying, pattern))
        for name, modulation in _MODULATIONS.items():
            for gate in (True, False):
                options: dict[str, Any] = {} if pattern == "FS-SF-SF" else {"patterns": _both(pattern)}
                options |= {} if modulation == "paper" else {"modulation": modulation}
                options |= {} if gate else {"channel": False}
                label = f"{name}{', gate' if gate else ''}, {pattern}"
                against = (copying,) if label == published else (copying, published)
                rows.append(_kerneldna(label, **options, against=against))
    return rows


def _table1(size: str) -> list[Cell]:
    mobile = ("mobilenetv2_050",) if size == "cpu" else ("mobilenetv2_050", "mobilenetv2_100")
    rows = [Cell(method or "base", "resnet18", method) for method in (None, *PEERS, "kerneldna")]
    return rows + [Cell(m or "base", b, m) for b in mobile for m in (None, *MOBILE, "kerneldna")]


def _table3(size: str) -> list[Cell]:
    patterns = ("FF-FFF", "FF-FF-FF", "FS-FSF", "FS-SSF", "FS-SF-SF")
    return [Cell("FF-FF", "resnet18")] + [_pattern(p, p) for p in patterns]


def _table4(size: str) -> list[Cell]:
    deeper = {"layer3": "F-F-F-F-F-F-F", "layer4": "F-F-F"}
    return [
        Cell("original", "resnet18"),
        _pattern("expanding parents", "FF-FFF"),
        _kerneldna("direct copying", **_COPYING),
        _kerneldna("adapter"),
        Cell("original", "resnet50"),
        _kerneldna("expanding parents", "resnet50", patterns=deeper),
        _kerneldna("direct copying", "resnet50", **_COPYING),
        _kerneldna("adapter", "resnet50"),
    ]


def _table5(size: str) -> list[Cell]:
    names = ("channel", "spatial", "filter")
    combinations = sorted(
        itertools.product((True, False), repeat=3), key=lambda f: (sum(f), *(not x for x in f))
    )
    return [
        _kerneldna(
            " + ".join(itertools.compress(names, flags)) or "none",
            **{name: False for name, flag in zip(names, flags, strict=True) if not flag},
        )
        for flags in combinations
    ]


def _modulation(size: str) -> list[Cell]:
    return [
        _kerneldna("paper's"),
        _kerneldna("position", modulation="position"),
        _kerneldna("position + input", modulation="position_input"),
        _kerneldna("low rank", modulation="low_rank"),
        _kerneldna("gate without BatchNorm", norm="none"),
        _kerneldna("gate of SE", norm="none", reduction=16),
        _kerneldna("one look-ahead gate a stage", gate="stage"),
    ]


def _peers(size: str) -> list[Cell]:
    order = ("se", "eca", "cbam", "odconv", "kernelwarehouse", "dyconv")
    return [Cell("plain", "resnet18"), *(Cell(method, "resnet18", method) for method in order)]


def _larger(size: str) -> list[Cell]:
    plain, narrowed, copying, *others = _equal_size(size)
    deeper = next(cell for cell in others if cell.label == "KernelDNA FS-SF-SF")
    return [plain, narrowed, copying, replace(deeper, against=("plain",))]


_ROWS = {name: globals()[f"_{name}"] for name in STUDIES}
_MODULATIONS = {
    "paper's": "paper",
    "position + input": "position_input",
    "mix": "mix",
    "low-rank mix": "mix_low_rank",
}
_BOTH_PLAIN = ("plain", "plain, narrowed")
# Widths at which a network has as many parameters as the one it stands beside, 10 classes; a test counts them.
_WIDENED, _NARROW50, _NARROW_MOBILE = 0.3635, 0.114, 0.9


def _kerneldna(
    label: str,
    backbone: str = "resnet18",
    *,
    width: float | None = None,
    against: tuple[str, ...] = (),
    **options: Any,
) -> Cell:
    return Cell(label, backbone, "kerneldna", json.dumps(options), width, against)


def _copying(label: str, pattern: str, **others: Any) -> Cell:
    options: dict[str, Any] = {} if pattern == "FS-SF-SF" else {"patterns": _both(pattern)}
    return _kerneldna(label, **options, **others, **_COPYING)


def _pattern(label: str, pattern: str) -> Cell:
    if pattern == "FS-SF-SF":
        return _kerneldna(label)  # the paper's recipe
    return _kerneldna(label, patterns=_both(pattern))


def _both(pattern: str) -> Mapping[str, str]:
    return {"layer3": pattern, "layer4": pattern}


def _plain(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value).lower()
    patterns = "+".join(dict.fromkeys(value.values()))
    return (
        patterns if len(value) == 2 else f"{patterns}-in-{len(value)}-stages"
    )  # the two last stages go without saying
