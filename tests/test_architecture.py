"""The rules of docs/architecture.md, checked on the imports of every file under src/.

Every import counts: at the top of a file, inside a function, under TYPE_CHECKING. What the registry imports
by name does not: that is how one set reaches another.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 300
ROW = re.compile(r"^\|\s*(\d+)\s*\|\s*`(\w+)/?`\s*\|", re.MULTILINE)

# kerneldna/__init__.py is the table of contents: it may import all, and only the command line imports it.
LIBRARY = "kerneldna"
SHELL = "kdna"


def read_levels(page: str) -> dict[str, int]:
    """Return the level of each row of the table in docs/architecture.md, by dotted module name."""
    return {name if name == SHELL else f"{LIBRARY}.{name}": int(level) for level, name in ROW.findall(page)}


def read_modules(src: Path) -> dict[str, Path]:
    """Return every file under `src` by its dotted module name; an `__init__` has its package's name."""
    names = {path: path.relative_to(src).with_suffix("").parts for path in sorted(src.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def read_imports(module: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for each import of this project in `path`, relative imports resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            members = [f"{base}.{alias.name}" for alias in node.names]
            found = [member if member in known else base for member in members]
        else:
            continue
        for name in dict.fromkeys(found):
            if name.partition(".")[0] in (LIBRARY, SHELL):
                yield node.lineno, name


def row_of(module: str) -> str:
    """Return the row of the table that `module` belongs to: a root file, a folder, or the command line."""
    parts = module.split(".")
    return SHELL if parts[0] == SHELL else ".".join(parts[:2])


def import_problem(module: str, target: str, levels: dict[str, int]) -> str | None:
    """Say what is wrong with `module` importing `target`, or return None."""
    here, there = row_of(module), row_of(target)
    if target == LIBRARY:
        if here == SHELL:
            return None
        return (
            "the table of contents, which stands above every module; import the module that defines the name"
        )
    if there not in levels:
        return "a module without a row in the table of docs/architecture.md; add one, or correct the name"
    if here == there:
        if module == here:
            return None
        return (
            "a file of its own folder; files of one folder never import each other, ask the registry instead"
        )
    if levels[there] < levels[here]:
        return None
    step = "up" if levels[there] > levels[here] else "sideways"
    return (
        f"a step {step}, from level {levels[here]} to level {levels[there]}; "
        "move what both need to a lower level, or ask the registry"
    )


def find_problems(src: Path, levels: dict[str, int]) -> list[str]:
    """Return one line for each break of the import rules under `src`."""
    modules = read_modules(src)
    known = set(modules) | set(levels)
    graph: dict[str, set[str]] = {}
    problems = []
    for module, path in modules.items():
        if module == LIBRARY:
            continue
        where = path.relative_to(src.parent).as_posix()
        if row_of(module) not in levels:
            problems.append(
                f"{where} has no row in the table of docs/architecture.md; add one with its level"
            )
            continue
        imports = list(read_imports(module, path, known))
        graph[module] = {target for _, target in imports}
        for line, target in imports:
            problem = import_problem(module, target, levels)
            if problem:
                problems.append(f"{where}:{line} imports {target}: {problem}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        problems.append(f"imports run in a circle: {' -> '.join(reversed(error.args[1]))}")
    return problems


def find_long_files(*folders: Path) -> list[str]:
    """Return one line for each Python file of more than MAX_LINES lines."""
    problems = []
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            length = len(path.read_text(encoding="utf-8").splitlines())
            if length > MAX_LINES:
                where = path.relative_to(folder.parent).as_posix()
                problems.append(f"{where} has {length} lines, {MAX_LINES} is the limit; split it by idea")
    return problems


LEVELS = read_levels((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_the_table_is_read():
    assert LEVELS["kerneldna.registry"] == 0
    assert LEVELS["kerneldna.methods"] > LEVELS["kerneldna.convert"]
    assert LEVELS["kdna"] == max(LEVELS.values())


def test_imports_flow_down():
    problems = find_problems(ROOT / "src", LEVELS)
    assert not problems, "\n".join(["", *problems])


def test_no_file_is_too_long():
    problems = find_long_files(ROOT / "src", ROOT / "tests")
    assert not problems, "\n".join(["", *problems])


# The checker itself, on small trees that break one rule each.

TABLE = {"kerneldna.low": 0, "kerneldna.plan": 1, "kerneldna.fuse": 1, "kerneldna.methods": 2, "kdna": 3}


def write_tree(src: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(text, encoding="utf-8")
    return src


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("low.py", "import torch\nimport kerneldna.plan", "low.py:2 imports kerneldna.plan: a step up"),
        ("plan.py", "from kerneldna.fuse import fuse_", "a step sideways, from level 1 to level 1"),
        ("plan.py", "from .methods import eca", "imports kerneldna.methods"),
        (
            "plan.py",
            "def f():\n    from kerneldna import fuse",
            "plan.py:2 imports kerneldna.fuse: a step sideways",
        ),
        (
            "plan.py",
            "if TYPE_CHECKING:\n    import kerneldna.methods.eca",
            "a step up, from level 1 to level 2",
        ),
        ("plan.py", "from kerneldna import create_model", "imports kerneldna: the table of contents"),
        ("plan.py", "import kerneldna.typo", "imports kerneldna.typo: a module without a row"),
        (
            "methods/eca.py",
            "from .odconv import gate",
            "imports kerneldna.methods.odconv: a file of its own folder",
        ),
        ("methods/eca.py", "from kdna import app", "imports kdna: a step up, from level 2 to level 3"),
        ("extra.py", "", "src/kerneldna/extra.py has no row in the table"),
        ("../kdna/train.py", "from kdna import app", "imports kdna: a file of its own folder"),
        ("../kdna/train.py", "import kdna.fuse", "imports kdna.fuse: a file of its own folder"),
    ],
)
def test_a_broken_rule_is_reported(tmp_path: Path, file: str, text: str, expected: str):
    files = {"kerneldna/methods/odconv.py": "", f"kerneldna/{file}": text}
    problems = find_problems(write_tree(tmp_path / "src", files), TABLE)
    assert len(problems) == 1
    assert expected in problems[0]


def test_a_circle_is_reported(tmp_path: Path):
    files = {"kerneldna/low.py": "import kerneldna.plan", "kerneldna/plan.py": "import kerneldna.low"}
    problems = find_problems(write_tree(tmp_path / "src", files), TABLE)
    assert problems[0].startswith("src/kerneldna/low.py:1 imports kerneldna.plan: a step up")
    assert re.search(
        r"circle: (kerneldna\.low -> kerneldna\.plan|kerneldna\.plan -> kerneldna\.low) -> ", problems[1]
    )


def test_what_the_rules_allow(tmp_path: Path):
    files = {
        "kerneldna/__init__.py": "from kerneldna.plan import plan\nfrom kerneldna.methods.eca import ECA",
        "kerneldna/low.py": "import torch\nfrom importlib import import_module",
        "kerneldna/plan.py": "from . import low\nfrom kerneldna.low import x",
        "kerneldna/methods/__init__.py": "from kerneldna.methods import eca",
        "kerneldna/methods/eca.py": "import datasets\nfrom ..plan import plan",
        "kdna/__init__.py": "from kdna.train import train",
        "kdna/train.py": "import kerneldna as kd\nfrom kerneldna import methods, create_model",
    }
    assert find_problems(write_tree(tmp_path / "src", files), TABLE) == []


def test_a_long_file_is_reported(tmp_path: Path):
    src = write_tree(tmp_path / "src", {"fits.py": "\n" * MAX_LINES, "long.py": "\n" * (MAX_LINES + 1)})
    assert find_long_files(src) == ["src/long.py has 301 lines, 300 is the limit; split it by idea"]
