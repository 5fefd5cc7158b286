"""A recipe: everything one training run depends on, as one checked value read from a YAML file.

    recipe = load_recipe("resnet18-kerneldna-cifar10", overrides=["schedule.epochs=5"])
    recipe.optimizer.lr         # 0.1
    print(recipe.to_yaml())     # the whole recipe, defaults written out

An unknown key, a wrong type or a value out of bounds is an error that names the file, the line and the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from kerneldna.reading.shown import shown, under
from kerneldna.reading.text import read_text
from kerneldna.recipes import yaml_file
from kerneldna.recipes.specs import Recipe
from kerneldna.registry import suggest

_FOLDER = Path(__file__).parent
_MOST_FAULTS = 10  # that a message tells


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
        found = error.errors()
        faults = [_fault(dict(fault), path, lines, changes) for fault in found[:_MOST_FAULTS]]
        more = [f"{path}: {len(found) - _MOST_FAULTS:,} more faults"] if len(found) > _MOST_FAULTS else []
        raise ValueError("\n".join([*faults, *more])) from None


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.exists():
            raise ValueError(
                f"no recipe file '{path}'; give the path of a YAML file, or a shipped name such as resnet18-digits: "
                "kdna list recipes"
            )
        return path
    if str(path) not in list_recipes():
        raise ValueError(suggest("recipe", str(path), list_recipes(), lister="kdna list recipes"))
    return _FOLDER / f"{path}.yaml"


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the file's values, and the line of each dotted key, counted from 1."""
    text = read_text(path, largest=yaml_file.LARGEST)
    try:
        values, lines = yaml_file.parse(text)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}, line 1: a recipe is a mapping of keys to values, given {shown(values)}")
    return values, lines


def read_value(text: str) -> Any:
    """Return the value that is written as YAML on a command line: "0.05", "false", "[0.2, 1]".

    Raises:
        ValueError: If it is not such a value.
    """
    try:
        return yaml_file.parse(text)[0]
    except ValueError as error:
        raise ValueError(f"the value {shown(text)} is not valid YAML; quote it") from error


def _override(values: dict[str, Any], text: str) -> str:
    """Write the override into `values` and return its dotted key."""
    key, equals, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        raise ValueError(f"override {text!r} is not key=value; write it as optimizer.lr=0.05")
    if not value.strip():
        raise ValueError(f"override {text!r} has no value; write {key.strip()}=null where none is meant")
    section: Any = values
    for part in sections:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise ValueError(f"override {text!r}: {part} is {shown(section)}, it has no keys of its own")
    try:
        section[name] = read_value(value)
    except ValueError as error:
        raise ValueError(f"override {text!r}: {error}") from error
    return key.strip()


def _fault(fault: dict[str, Any], path: Path, lines: dict[str, int], changes: dict[str, str]) -> str:
    """Word one of pydantic's faults: where, key, what is wrong, what is allowed."""
    key = ".".join(map(str, fault["loc"]))
    known = next((k for k in sorted(lines, key=len, reverse=True) if f"{key}.".startswith(f"{k}.")), None)
    where = f"{path}, line {lines[known] if known else 1}"
    for changed, text in changes.items():
        if f"{key}.".startswith(f"{changed}.") or f"{changed}.".startswith(f"{key}."):
            where = f"override {text!r}"
    where = f"{where}, {reduce(under, fault['loc'], '')}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: {suggest('key', str(fault['loc'][-1]), _allowed(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: the key is missing and has no default; add it"
    if fault["type"] == "model_type":
        keys = ", ".join(_allowed(fault["loc"]))
        return f"{where}: this is a section with the keys {keys}; given {shown(fault['input'])}"
    if fault["type"] == "value_error":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    return (
        f"{where}: {fault['msg'].replace('Input should', 'the value should')}; given {shown(fault['input'])}"
    )


def _allowed(key: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the section that `key` leads to."""
    section: Any = Recipe
    for name in key:
        annotation = section.model_fields[str(name)].annotation
        # a section that may be missing is a union with None
        section = next((part for part in get_args(annotation) if hasattr(part, "model_fields")), annotation)
    return list(section.model_fields)
