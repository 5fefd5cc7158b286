"""Whatever a file holds, reading it gives plain values or one of the documented errors."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import outcome
from kdna.terminal import printable
from kerneldna.conversion.plan import Plan
from kerneldna.reading.names import as_name, check_name
from kerneldna.reading.shown import shown
from kerneldna.reading.text import read_json
from kerneldna.reading.typed import typed
from kerneldna.recipes.recipe import load_recipe
from kerneldna.recipes.specs import Recipe
from kerneldna.recipes.yaml_file import parse

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
once = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KEYS = ["name", "task", "seed", "ema", *(f"{part}.{key}" for part, key in (
    ("model", "name"), ("model", "options"), ("data", "image_size"), ("augment", "scale"), ("schedule", "milestones"),
    ("optimizer", "lr"),
))]  # fmt: skip


@once
@given(st.binary(max_size=200) | plain.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
def test_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    opened, value = outcome(lambda: read_json(path), str(path))
    if opened:
        json.dumps(value, allow_nan=False)


@once
@given(st.text(max_size=200) | plain.map(json.dumps))
def test_yaml(text):
    opened, found = outcome(lambda: parse(text), "line ")
    if opened:
        values, lines = found
        json.dumps(values)
        assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@once
@given(st.sampled_from(KEYS), plain)
def test_recipes(tmp_path, key, value):
    recipe = json.loads(RECIPE)
    section, _, name = key.rpartition(".")
    (recipe[section] if section else recipe)[name] = value
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    opened, found = outcome(lambda: load_recipe(path), f"{path}, line ")
    if opened:
        assert isinstance(found, Recipe)
        path.write_text(found.to_yaml(), encoding="utf-8")
        assert load_recipe(path) == found


RECIPE = json.dumps(load_recipe("resnet18-kerneldna-digits").model_dump(mode="json"))
PLAN = Plan("kerneldna", {}, (3, 8, 8), ()).to_dict()


@once
@given(st.sampled_from(sorted(PLAN)), plain)
def test_plans(key, value):
    data = {**PLAN, key: value}
    opened, found = outcome(lambda: Plan.from_dict(data), f"plan.{key}")
    if opened:
        assert Plan.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@given(plain)
def test_values_in_messages(value):
    text = shown(value)
    assert len(text) < 100
    assert "\x1b" not in text
    assert "\n" not in text


@given(st.text())
def test_what_is_printed(text):
    found = printable(text)
    assert printable(found) == found
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", found)


@given(st.text(max_size=20))
def test_names(tmp_path_factory, name):
    if outcome(lambda: check_name(name), "use letters, digits")[0]:
        folder = tmp_path_factory.getbasetemp()
        assert (folder / name).parent == folder
        assert (folder / name).name == name
        assert as_name(name) == name
    assert check_name(as_name(name)) == as_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf_hub:timm/resnet18.a1_in1k", "hf_hub_timm_resnet18.a1_in1k"),
        ("net:v1", "net_v1"),
        ("netz.", "netz"),
        (".hidden", "hidden"),
        ("-x", "x"),
        ("con", "_con"),
        ("", "network"),
        (". .", "network"),
        ("mein Netz (v1)", "mein Netz (v1)"),
        (f"{'n' * 120}", "n" * 100),
    ],
)
def test_a_name_of_something_that_is_none(text, name):
    assert as_name(text) == name


@pytest.mark.parametrize("kind", [int, float, str, bool])
@given(value=plain)
def test_types(kind, value):
    try:
        assert typed(value, kind) is value
    except ValueError:
        assert type(value) is not kind or value != value or abs(value) > 1e300
