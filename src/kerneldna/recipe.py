"""A recipe: everything one training run depends on, as one checked value read from a YAML file.

    recipe = load_recipe("resnet18-kerneldna-cifar10", overrides=["schedule.epochs=5"])
    recipe.optimizer.lr         # 0.1
    print(recipe.to_yaml())     # the whole recipe, defaults written out

An unknown key, a wrong type or a value out of bounds is an error that names the file, the line and the key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kerneldna.registry import suggest

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

_FOLDER = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    # Strict, as YAML types its values already: `epochs: yes` would otherwise mean one epoch.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSpec(_Section):
    """Which network is trained."""

    name: str
    """The backbone's timm name."""
    method: str | None = None
    """Name of the method it is converted with; null trains the plain backbone."""
    options: dict[str, Any] = {}
    """Arguments of the method; empty means the method's own recipe for this backbone."""
    width: Positive = 1.0
    """Factor on the number of channels."""
    stem: Literal["default", "small"] = "default"
    """"small" replaces the stem by one 3x3 convolution of stride 1, for images of 32 px and so."""
    pretrained: bool = False
    """Start from timm's weights."""
    args: dict[str, Any] = {}
    """Further arguments of timm's create_model."""


class DataSpec(_Section):
    """Which images are read, and how."""

    source: str
    """A folder, a hub name "owner/name", or the name of a built-in set such as "digits"."""
    image_size: Count
    """Side of the square the network sees, in pixels."""
    batch_size: Count
    """Images per step, all processes together."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode images; 0 decodes in the training process."""
    resident: bool = False
    """Decode all images once, keep them on the training device, and crop and flip them there: for sets that fit."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read; "skip" logs and counts it."""
    limit_train: Count | None = None
    """Use only this many training images, the same ones for every seed."""
    limit_val: Count | None = None
    """The same for validation images."""


class AugmentSpec(_Section):
    """How training images are varied, and how evaluation images are cut."""

    crop: Literal["none", "pad", "random_resized"] = "none"
    """"pad" adds 1/8 of the side around the image and cuts a square at random."""
    scale: Annotated[tuple[Positive, Fraction], Field(strict=False)] = (0.08, 1.0)
    """Smallest and largest share of the area that a random resized crop keeps."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    color_jitter: NotNegative = 0.0
    """Strength of the change in brightness, contrast and saturation; not used beside `auto`."""
    auto: str | None = None
    """timm's auto-augment string, such as rand-m9-mstd0.5-inc1."""
    mixup: NotNegative = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix; 0 is off."""
    erasing: Fraction = 0.0
    """Probability of erasing a random rectangle."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How images are resized."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Share of the shorter side that the centre crop keeps in evaluation, where crop is "random_resized"."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSpec:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is (smallest, largest), given {self.scale}; swap the two")
        return self


class OptimizerSpec(_Section):
    """What turns gradients into steps."""

    name: Literal["sgd", "adamw"]
    lr: Positive
    """Learning rate at its highest, for the whole batch over all processes."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; AdamW does not read it."""
    nesterov: bool = False
    weight_decay: NotNegative
    """Weight decay: added to the gradient by SGD, decoupled in AdamW."""
    decay_norm_and_bias: bool = True
    """Whether biases and the weights of norms decay too."""


class ScheduleSpec(_Section):
    """How long, and how the learning rate moves: a linear warm-up, then half a cosine."""

    epochs: Count
    """Passes over the training images."""
    warmup_epochs: NotNegative = 0.0
    """Length of the warm-up, in epochs, part of `epochs`."""
    warmup_lr: NotNegative = 1e-6
    """Learning rate at the first step of the warm-up."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> ScheduleSpec:
        if self.warmup_epochs >= self.epochs:
            given = f"warmup_epochs is {self.warmup_epochs:g} and epochs {self.epochs}"
            raise ValueError(f"{given}; the warm-up must end first: raise epochs or lower warmup_epochs")
        return self


class Recipe(_Section):
    """Everything one training run depends on."""

    name: str
    """Its name, and that of its row in a table."""
    task: str = "classification"
    """What is learnt: the name of a task."""
    model: ModelSpec
    data: DataSpec
    augment: AugmentSpec = AugmentSpec()
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the moving average of the weights; null is off."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient; null is off."""
    channels_last: bool = True
    """Keep images channel-last in memory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Where every random draw starts."""

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `load_recipe` reads back, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_path: A shipped name (see `list_recipes`), or the path of a YAML file.
        overrides: Changes such as "optimizer.lr=0.05" or "model.method=null"; the value is read as YAML.

    Returns:
        The recipe with the overrides applied.

    Raises:
        ValueError: If there is no such recipe, or it or an override is wrong; the message has one line for
            each fault: file and line or override, key, and what is allowed.

    Example:
        >>> load_recipe("resnet18-cifar10", overrides=["optimizer.lr=0.05"]).optimizer.lr
        0.05
    """
    path = _find(name_or_path)
    values, lines = _parse(path)
    changes = {_override(values, text): text for text in overrides}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_fault(dict(fault), path, lines, changes) for fault in error.errors()]
        raise ValueError("\n".join(faults)) from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML alone reads 1e-4 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            shipped = ", ".join(list_recipes())
            raise ValueError(
                f"no recipe file '{path}'; give the path of a YAML file or a shipped name: {shipped}"
            )
        return path
    if str(path) not in list_recipes():
        raise ValueError(suggest("recipe", str(path), list_recipes()))
    return _FOLDER / f"{path}.yaml"


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the file's values, and the line of each dotted key, counted from 1."""
    text = path.read_text(encoding="utf-8")
    lines: dict[str, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: not valid YAML: {error.problem}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}, line 1: a recipe is a mapping of keys to values, given {values!r}")

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for name, value in node.value:
            key, line = f"{prefix}{name.value}", name.start_mark.line + 1
            if key in lines:
                raise ValueError(f"{path}, line {line}, {key}: also in line {lines[key]}; keep one")
            lines[key] = line
            walk(value, f"{key}.")

    walk(node, "")
    return values, lines


def _override(values: dict[str, Any], text: str) -> str:
    """Write the override into `values` and return its dotted key."""
    key, equals, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        raise ValueError(f"override {text!r} is not key=value; write it as optimizer.lr=0.05")
    section: Any = values
    for part in sections:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ValueError(f"override {text!r}: {part} is {section!r}, it has no keys of its own")
    try:
        section[name] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ValueError(f"override {text!r}: the value {value!r} is not valid YAML; quote it") from None
    return key.strip()


def _fault(fault: dict[str, Any], path: Path, lines: dict[str, int], changes: dict[str, str]) -> str:
    """Word one of pydantic's faults: where, key, what is wrong, what is allowed."""
    key = ".".join(map(str, fault["loc"]))
    known = next((k for k in sorted(lines, key=len, reverse=True) if f"{key}.".startswith(f"{k}.")), None)
    where = f"{path}, line {lines[known] if known else 1}"
    for changed, text in changes.items():
        if f"{key}.".startswith(f"{changed}.") or f"{changed}.".startswith(f"{key}."):
            where = f"override {text!r}"
    where = f"{where}, {key}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: {suggest('key', str(fault['loc'][-1]), _allowed(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: the key is missing and has no default; add it"
    if fault["type"] == "model_type":
        keys = ", ".join(_allowed(fault["loc"]))
        return f"{where}: this is a section with the keys {keys}; given {fault['input']!r}"
    if fault["type"] == "value_error":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    return f"{where}: {fault['msg'].replace('Input should', 'the value should')}; given {fault['input']!r}"


def _allowed(key: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the section that `key` leads to."""
    section: Any = Recipe
    for name in key:
        section = section.model_fields[str(name)].annotation
    return list(section.model_fields)
