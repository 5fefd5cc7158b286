"""The registry: members found by file name, imported when first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneldna import registry
from kerneldna.registry import Registry, suggest


@pytest.fixture
def fruits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """Yield a registry of a package with the files apple.py and pear.py, which register themselves."""
    package = tmp_path / "fruit_set"
    package.mkdir()
    (package / "__init__.py").write_text(
        'from kerneldna.registry import Registry\nfruits = Registry("fruit", __name__)\n'
    )
    for name in ("pear", "apple"):
        (package / f"{name}.py").write_text(
            f'from fruit_set import fruits\n\n@fruits.register("{name}")\nclass Fruit:\n    name = "{name}"\n'
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fruit_set").fruits
    for name in [name for name in sys.modules if name.partition(".")[0] == "fruit_set"]:
        del sys.modules[name]


def test_names_lists_the_files_without_importing_them(fruits: Registry):
    assert fruits.names() == ["apple", "pear"]
    assert "fruit_set.apple" not in sys.modules


def test_get_imports_only_the_file_asked_for(fruits: Registry):
    assert fruits.get("apple").name == "apple"
    assert "fruit_set.apple" in sys.modules
    assert "fruit_set.pear" not in sys.modules


def test_get_returns_the_same_member_again(fruits: Registry):
    assert fruits.get("pear") is fruits.get("pear")


def test_a_member_need_not_be_a_file(fruits: Registry):
    @fruits.register("fig")
    def fig() -> None: ...

    assert fruits.get("fig") is fig
    assert fruits.names() == ["apple", "fig", "pear"]


def test_get_of_an_unknown_name_suggests_the_nearest(fruits: Registry):
    with pytest.raises(
        ValueError, match=r"^unknown fruit 'aple'; did you mean 'apple'\? Known: apple, pear$"
    ):
        fruits.get("aple")


def test_an_error_inside_a_member_is_not_hidden(fruits: Registry, tmp_path: Path):
    (tmp_path / "fruit_set" / "rotten.py").write_text("import a_package_that_is_missing\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        fruits.get("rotten")


def test_suggest_without_a_near_name_lists_all_sorted():
    assert suggest("method", "zzz", ["odconv", "eca"]) == "unknown method 'zzz'; Known: eca, odconv"


def test_suggest_names_the_nearest():
    given = suggest("method", "odcnv", iter(["odconv", "eca"]))
    assert given == "unknown method 'odcnv'; did you mean 'odconv'? Known: eca, odconv"


@pytest.mark.parametrize("name", ["methods", "datasets", "tasks", "runtimes"])
def test_each_set_is_a_package_whose_files_register_their_names(name: str):
    members: Registry = getattr(registry, name)
    for member in members.names():
        assert members.get(member) is not None


def test_of_many_names_a_few_near_ones_are_listed():
    names = [f"resnet{i}" for i in range(1000)]
    given = suggest("model", "resnt18", names, lister="timm.list_models()")
    assert given.startswith("unknown model 'resnt18'; did you mean 'resnet18'? Near: resnet18, ")
    assert given.endswith("; timm.list_models() lists all 1,000")
    assert len(given) < 200
    assert suggest("model", "x" * 10_000, names) == f"unknown model '{'x' * 60}...'; 1,000 are known"


def test_a_name_in_an_error_is_no_command_to_the_terminal():
    assert suggest("method", "\x1b[2J", ["eca"]) == "unknown method '\\x1b[2J'; Known: eca"
