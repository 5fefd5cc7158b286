"""What the documents name exists: modules and functions, files and folders, links and their headings."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

import kerneldna as kd

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def resolved(dotted):
    """Return what a dotted name of the library stands for; fail where it stands for nothing."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[cut:], module)
    raise AssertionError(dotted)


@each_page
def test_names_of_the_library_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bkd\.([a-z_A-Z]+(?:\.[a-z_A-Z]+)?)", text):
        reduce(getattr, name.split("."), kd)
    for name in re.findall(r"\b(kerneldna(?:\.[a-zA-Z_]\w*)+)", text):
        if not name.endswith((".py", ".load")):
            resolved(name)
    for module, names in re.findall(r"from (kerneldna[\w.]*) import ([\w, ]+)", text):
        for name in names.split(","):
            getattr(resolved(module), name.strip(), None) or resolved(f"{module}.{name.strip()}")


@each_page
def test_files_named_in_the_text_exist(page):
    named = re.findall(
        r"(?<![\w/])(?<!--out )(?<!--figure )((?:src|tests|experiments|docs|benchmarks)/[\w./-]+)",
        page.read_text(encoding="utf-8"),
    )
    made = ("tests/methods/test_toy.py",)  # what the reader is to write
    missing = [
        name for name in named if not (ROOT / name).exists() and name not in made and not name.endswith("/")
    ]
    assert not missing


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        there = page if not path else page.parent / path
        assert there.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.*)", there.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}
            assert heading in anchors, target


QUESTIONS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/questions.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("block", QUESTIONS, ids=range(len(QUESTIONS)))
def test_a_block_of_the_questions_runs_as_pasted(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "save(" not in block or list(tmp_path.glob("*/model.safetensors"))
