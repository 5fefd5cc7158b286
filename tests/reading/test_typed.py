from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from kerneldna.reading.shown import said, shown, under
from kerneldna.reading.typed import Within, typed, typed_fields


@dataclass(frozen=True)
class Part:
    name: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    size: tuple[Annotated[int, Within(1, 9000)], Annotated[int, Within(1)]]
    mode: Literal["fast", "exact"] = "fast"
    share: float | None = None
    kinds: str | Sequence[str] = "all"
    counts: Mapping[str, int] | None = None
    free: Any = None

    def __post_init__(self):
        if self.counts == {}:
            raise ValueError("counts: none was given")


GOOD = {
    "parts": [{"name": "a", "shape": [1, 2]}, {"name": "b"}], "size": [3, 4], "share": 1, "kinds": ["x"], "counts": {"a": 1},
    "free": {"any": [None]},
}  # fmt: skip


def test_plain_data_becomes_the_type():
    made = typed(GOOD, Whole)
    assert made.parts == (Part("a", (1, 2)), Part("b"))
    assert (made.size, made.mode, made.share, made.kinds) == ((3, 4), "fast", 1, ("x",))
    assert (made.counts, made.free) == ({"a": 1}, {"any": [None]})
    assert typed(None, Whole | None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 3}, "at.parts: expected a list, given 3"),
        ({"parts": [{"name": 1}]}, "at.parts[0].name: expected text, given 1"),
        (
            {"parts": [{"name": "a", "shape": [1, True]}]},
            "at.parts[0].shape[1]: expected a whole number, given True",
        ),
        ({"parts": [{"shape": []}]}, "at.parts[0].name: the key is missing"),
        (
            {"parts": [{"nam": "a"}]},
            "at.parts[0].nam: unknown key 'nam'; did you mean 'name'? Known: name, shape",
        ),
        ({"size": [1, 2, 3]}, "at.size: expected a list of 2 values, given [1, 2, 3]"),
        ({"size": [9001, 1]}, "at.size[0]: expected a whole number from 1 to 9,000, given 9001"),
        ({"size": [1, 0]}, "at.size[1]: expected a whole number of 1 or more, given 0"),
        ({"mode": "slow"}, "at.mode: expected 'fast' or 'exact', given 'slow'"),
        ({"share": "1"}, "at.share: expected a number or null, given '1'"),
        ({"share": float("nan")}, "at.share: expected a number or null, given nan"),
        ({"share": float("inf")}, "at.share: expected a number or null, given inf"),
        ({"kinds": ["x", 1]}, "at.kinds[1]: expected text, given 1"),
        ({"kinds": None}, "at.kinds: expected text or a list, given None"),
        ({"counts": {"a": 1.5}}, "at.counts.a: expected a whole number, given 1.5"),
        ({"counts": {1: 1}}, "at.counts: expected a section of keys and values or null, given {1: 1}"),
        ({"counts": {}}, "counts: none was given"),
        ({"\x1b[2J": 1}, "at.'\\x1b[2J': unknown key '\\x1b[2J'; Known: counts"),
    ],
)
def test_what_is_of_another_type(changes, message):
    with pytest.raises(ValueError, match=r".") as caught:
        typed({**GOOD, **changes}, Whole, "at")
    assert str(caught.value).startswith(message)


def test_some_fields_alone():
    assert typed_fields({"mode": "exact"}, Whole) == {"mode": "exact"}
    with pytest.raises(ValueError, match="mode: expected 'fast' or 'exact', given None"):
        typed_fields({"mode": None}, Whole)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b[0m\n", r"'a\x1b[0m\n'"),
        ("x" * 10**6, f"'{'x' * 59}..."),
        (10**100, "a whole number of 333 bits"),
        ([1, [2]], "[1, [2]]"),
        ((1,), "(1)"),
        ([0] * 9, "a list of 9 values"),
        ({"a": {"b": 1}}, "{'a': {'b': 1}}"),
        (dict.fromkeys("abcde"), "a section of 5 keys"),
        ([], "[]"),
    ],
)
def test_values_in_messages_are_short_and_on_one_line(value, text):
    assert shown(value) == text


def test_places_and_errors_in_messages():
    assert under("a[0]", "b") == "a[0].b"
    assert under("", "b") == "b"
    assert said(KeyError("x")) == "KeyError 'x'"
    assert said(ValueError("\n\n first \n second")) == "first"
    assert said(ValueError()) == "ValueError"
