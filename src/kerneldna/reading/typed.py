"""Plain data of a file, checked against a type: what a dataclass says of its fields is what the file may say.

typed({"name": "conv1", "shape": [8, "x"]}, Layer, "plan")    # plan.shape[1]: expected a whole number, given 'x'
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from kerneldna.reading.shown import shown, under
from kerneldna.registry import suggest


@dataclass(frozen=True)
class Within:
    """The bounds of a number in a type, both allowed: `Annotated[int, Within(1, 512)]`."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"of {self.low:,} or more" if self.high == math.inf else f"from {self.low:,} to {self.high:,}"


Count = Annotated[int, Within(0)]


def typed(value: Any, kind: Any, at: str = "") -> Any:
    """Return plain data as a type: a mapping as a dataclass, a list as a tuple; values stay as they are.

    Args:
        value: What `json.loads` returns, or data of such values.
        kind: A dataclass, or any of bool, int, float, str, None, Any, Literal, unions, `tuple[...]`, `Sequence[...]`,
            `Mapping[str, ...]` and `Annotated[..., Within(...)]`. A dataclass's own checks run too.
        at: Where the value stands, as messages name it: "plan.stages[0]".

    Raises:
        ValueError: If the value is not of the type; the message says where, what is expected and what was given.
    """
    form, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if form in (Union, types.UnionType):
        return _one_of(value, parts, at)
    if form is Annotated:
        found = typed(value, parts[0], at)
        within = all(bound.low <= found <= bound.high for bound in parts[1:] if isinstance(bound, Within))
        return found if within else _refuse(value, kind, at)
    if is_dataclass(kind):
        made: Any = kind
        return made(**typed_fields(value, made, at, whole=True))
    if form is tuple or _is_kind(form, Sequence):
        return _listed(value, kind, at)
    if _is_kind(form, Mapping):
        return {key: typed(part, parts[1], under(at, key)) for key, part in _section(value, kind, at).items()}
    return value if _is(value, kind) else _refuse(value, kind, at)


def typed_fields(value: Any, kind: Any, at: str = "", *, whole: bool = False) -> dict[str, Any]:
    """Return a mapping's values, checked against the fields of a dataclass, by name.

    Args:
        value: The mapping.
        kind: The dataclass.
        at: Where the mapping stands, as messages name it.
        whole: A field without a default may not be missing.

    Raises:
        ValueError: If a key is unknown or missing, or a value is not of its field's type.
    """
    known = {field.name: field for field in fields(kind) if field.init}
    given, kinds = _section(value, kind, at), _kinds(kind)
    for key in given:
        if key not in known:
            raise ValueError(f"{under(at, key)}: {suggest('key', key, known)}")
    for key, field in known.items():
        needed = whole and field.default is MISSING and field.default_factory is MISSING
        if needed and key not in given:
            raise ValueError(f"{under(at, key)}: the key is missing")
    return {key: typed(part, kinds[key], under(at, key)) for key, part in given.items()}


@cache
def _kinds(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _is_kind(form: Any, base: type[Any]) -> bool:
    return isinstance(form, type) and issubclass(form, base)


def _is(value: Any, kind: Any) -> bool:
    if kind in (None, types.NoneType):
        return value is None
    if get_origin(kind) is Literal:
        return any(type(value) is type(known) and value == known for known in get_args(kind))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= 1e300
    return type(value) is kind  # True is no number


def _listed(value: Any, kind: Any, at: str) -> Any:
    parts = get_args(kind)
    if not isinstance(value, (list, tuple)):
        _refuse(value, kind, at)
    if get_origin(kind) is tuple and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            _refuse(value, kind, at)
        kinds = parts
    else:
        kinds = parts[:1] * len(value)
    return tuple(
        typed(part, inner, f"{at}[{i}]") for i, (part, inner) in enumerate(zip(value, kinds, strict=True))
    )


def _one_of(value: Any, kinds: tuple[Any, ...], at: str) -> Any:
    inner: ValueError | None = None
    for kind in kinds:
        try:
            return typed(value, kind, at)
        except ValueError as error:
            # where one kind has the value's form, what is wrong inside says more
            if not str(error).startswith(f"{at}: "):
                inner = error
    if inner is not None:
        raise inner
    return _refuse(value, Union[kinds], at)  # noqa: UP007 - its members are in a tuple


def _section(value: Any, kind: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(value, kind, at)
    return value


def _refuse(value: Any, kind: Any, at: str) -> NoReturn:
    raise ValueError(f"{at or 'the content'}: expected {_said(kind)}, given {shown(value)}")


def _said(kind: Any) -> str:
    """Say a type in words."""
    form, parts = get_origin(kind), get_args(kind)
    if form is Annotated:
        return " ".join([_said(parts[0]), *(str(bound) for bound in parts[1:] if isinstance(bound, Within))])
    if form in (Union, types.UnionType):
        return " or ".join(map(_said, parts))
    if form is Literal:
        return " or ".join(map(repr, parts))
    if form is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} values"
    if form is tuple or _is_kind(form, Sequence):
        return "a list"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "null",
    }
    return words.get(kind, "a section of keys and values")
