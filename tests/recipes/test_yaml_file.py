"""YAML of users: plain values, within bounds, and every fault with its line."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import yaml

from damage import MANY, QUICK, cases, damaged_json, damaged_text, in_place_of, outcome
from kerneldna.recipes import recipe as recipes
from kerneldna.recipes.recipe import list_recipes, load_recipe, read_value
from kerneldna.recipes.yaml_file import parse

COUNTS = [QUICK, pytest.param(MANY, marks=pytest.mark.slow)]


def lines_of_aliases(first, form, *, levels=10):
    """Return the lines a, b, c, ...: each nine times the one before, nine to the tenth in all."""
    names = "abcdefghij"[:levels]
    made = [f"{names[0]}: &{names[0]} {first}"]
    for before, name in pairwise(names):
        made.append(f"{name}: &{name} {form([f'*{before}'] * 9)}")
    return "\n".join(made)


def in_a_list(parts):
    return f"[{', '.join(parts)}]"


def in_a_mapping(parts):
    return f"{{{', '.join(f'k{i}: {part}' for i, part in enumerate(parts))}}}"


def merged(parts):
    return f"{{<<: [{', '.join(parts)}]}}"


def test_plain_values_and_their_lines():
    values, lines = parse("a: 1e-4\nb:\n  c: [yes, 0x10, .5, ~, '1']\n  d: 2026-01-01\n")
    assert values == {"a": 1e-4, "b": {"c": [True, 16, 0.5, None, "1"], "d": "2026-01-01"}}
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4}
    assert parse("") == (None, {})


def test_aliases_and_merges_are_copies():
    values, _ = parse("a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2\n")
    assert values == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    values["a"]["x"] = 3
    assert values["b"] == {"x": 1}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            lines_of_aliases("[x]", in_a_list),
            "line 5: not valid YAML: more than 10,000 values, aliases expanded",
        ),
        (lines_of_aliases("{x: 1}", in_a_mapping), "more than 10,000 values, aliases expanded"),
        (lines_of_aliases("{x: 1}", merged), "more than 10,000 values, aliases expanded"),
        ("a: &a [*a]", "line 1: not valid YAML: an alias stands for what holds it"),
        ("a: &a {b: *a}", "an alias stands for what holds it"),
        ("\n".join(f"k{i}: {'&a ' if i == 0 else ''}{i}" for i in range(6000)), "more than 10,000 values"),
        ("[" * 10_000, "line 1: not valid YAML: values nested more than 32 deep"),
        ("{a: " * 10_000, "line 1: not valid YAML: values nested more than 32 deep"),
        ("- " * 10_000, "line 1: not valid YAML: values nested more than 32 deep"),
        (
            "a: 1\nb: !!python/object/apply:os.system [x]",
            "line 2: not valid YAML: could not determine a constructor for the tag",
        ),
        ("a: !!binary aGk=", "could not determine a constructor for the tag 'tag:yaml.org,2002:binary'"),
        ("a: !!timestamp 2026-01-01", "could not determine a constructor"),
        ("a: !!set {b}", "could not determine a constructor"),
        ("a: !!int x", "line 1: not valid YAML: 'x': invalid literal for int()"),
        (f"a: 1\nb: {'9' * 5000}", "Exceeds the limit"),
        ("a: 0x_", "line 1: not valid YAML: '0x_': invalid literal"),
        (r'a: "\ud800"', "line 1: not valid YAML: "),
        (r'a: "\U00110000"', "line 1: not valid YAML: "),
        ("a: 1\nb: \x1b[2J", "line 2: not valid YAML: the character '\\x1b'; remove it"),
        ("? [a]\n: 1", "line 1: not valid YAML: found unhashable key"),
        ("a: 1\n\x1b: 2", "line 2: not valid YAML: the character"),
        ('"\\e[2J": 1\n"\\e[2J": 2', "line 2, '\\x1b[2J': also in line 1; keep one"),
        ("a: *b", "line 1: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML: but found another document"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=r"^line \d+") as caught:
        parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_values_of_a_command_line():
    assert read_value("[0.2, 1e0]") == [0.2, 1.0]
    with pytest.raises(ValueError, match=r"the value '\[1' is not valid YAML; quote it"):
        read_value("[1")


WHOLE = load_recipe("resnet18-kerneldna-cifar10")


def as_json(content, rng):
    """Return a recipe with damage done to its values: JSON is YAML."""
    return damaged_json(json.dumps(yaml.safe_load(content)).encode(), rng)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("damage", [damaged_text, as_json])
def test_any_damage_of_a_recipe(tmp_path, damage, count):
    path = tmp_path / "mine.yaml"
    for rng in cases(count, f"recipe {damage.__name__}"):
        name = rng.choice(list_recipes())
        path.write_bytes(damage((recipes._FOLDER / f"{name}.yaml").read_bytes(), rng))
        opened, found = outcome(lambda: load_recipe(path), path.name, errors=(ValueError,))
        if opened:  # a number for a number; what was read is written and read again
            path.write_text(found.to_yaml(), encoding="utf-8")
            assert load_recipe(path) == found


def test_no_file_in_the_place_of_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(WHOLE.to_yaml(), encoding="utf-8")
    for what in in_place_of(path):
        assert not outcome(lambda: load_recipe(path), path.name)[0], what
    assert load_recipe(path) == WHOLE


def test_a_recipe_saved_on_windows_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.to_yaml().replace("\n", "\r\n").encode())
    assert load_recipe(path) == WHOLE


def test_a_thousand_faults_are_not_all_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(WHOLE.to_yaml() + "".join(f"x{i}: 1\n" for i in range(1000)), encoding="utf-8")
    opened, message = outcome(lambda: load_recipe(path), path.name)
    assert not opened
    assert message.endswith(f"{path}: 990 more faults")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/b", "a\\b", "..", ".hidden", "~x", "-rf", "a:b", "", " ", " a", "a.", "nul", "COM1.txt",
             "a\nb", "a\x1b[2Jb", "a\u202eb", "x" * 101],
)  # fmt: skip
def test_a_name_stays_in_its_folder(tmp_path, name):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**yaml.safe_load(WHOLE.to_yaml()), "name": name}), encoding="utf-8")
    opened, message = outcome(lambda: load_recipe(path), path.name)
    assert not opened
    assert "line 1, name: the name " in message
    assert "use letters, digits" in message


@pytest.mark.parametrize("name", ["resnet18-kerneldna", "my run 2", "réseau_1.5", "a@b=c,(d)", "console"])
def test_usual_names_do(name):
    assert load_recipe("resnet18-digits", overrides=[f"name={name}"]).name == name
