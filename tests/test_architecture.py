"""The rules of docs/architecture.md, checked on the imports of every file under src/.

Every import counts: at the top of a file, inside a function, under TYPE_CHECKING. What the registry imports
by name does not: that is how a set is reached from below.
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
ROW = re.compile(r"^\| (`.+?`) \|", re.MULTILINE)

# kerneldna/__init__.py is the table of contents: it may import all, and only the command line imports it.
LIBRARY = "kerneldna"
SHELL = "kdna"
# What every command prints through.
SHARED = ("kdna.terminal", "kdna.wording", "kdna.options")
# A folder that is a set: its members are found by their file name and never import each other.
SETS = ("methods", "data.datasets", "deploy.runtimes", "training.tasks")


def read_rooms(page: str) -> dict[str, int]:
    """Return the rooms of the table in docs/architecture.md with their height: the last row stands lowest."""
    rows = ROW.findall(page)
    return {
        name: len(rows) - place for place, row in enumerate(rows) for name in re.findall(r"`([\w.]+)/?`", row)
    }


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


def room_of(module: str) -> str:
    """Return the room of `module`: a folder or file of the library's root, or the command line."""
    return SHELL if module.partition(".")[0] == SHELL else module.split(".")[1]


def set_of(module: str) -> str | None:
    """Return the set that `module` is a member of."""
    inside = module.removeprefix(f"{LIBRARY}.")
    return next((name for name in SETS if inside.startswith(f"{name}.")), None)


def import_problem(module: str, target: str, rooms: dict[str, int]) -> str | None:
    """Say what is wrong with `module` importing `target`, or return None."""
    if target == LIBRARY:
        if room_of(module) == SHELL:
            return None
        return (
            "the table of contents, which stands above every module; import the module that defines the name"
        )
    here, there = room_of(module), room_of(target)
    if there not in rooms:
        return "a room without a row in the table of docs/architecture.md; add one, or correct the name"
    if here == there == SHELL:
        if module == SHELL or target in SHARED:
            return None
        return "another command; commands share what the library offers"
    if there == here:
        if set_of(target) and module != f"{LIBRARY}.{set_of(target)}":
            return "a member of a set, found by its file name alone; ask the registry instead"
        return None
    if rooms[there] < rooms[here]:
        return None
    return f"a step up, from {here} to {there}; move what both need to a lower room, or ask the registry"


def find_problems(src: Path, rooms: dict[str, int]) -> list[str]:
    """Return one line for each break of the import rules under `src`."""
    modules = read_modules(src)
    known = {*modules, *(f"{LIBRARY}.{room}" for room in rooms)}
    graph: dict[str, set[str]] = {}
    problems = []
    for module, path in modules.items():
        if module == LIBRARY:
            continue
        where = path.relative_to(src.parent).as_posix()
        if room_of(module) not in rooms:
            problems.append(f"{where} has no row in the table of docs/architecture.md; add one at its height")
            continue
        imports = list(read_imports(module, path, known))
        graph[module] = {target for _, target in imports}
        for line, target in imports:
            problem = import_problem(module, target, rooms)
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


ROOMS = read_rooms((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_the_table_is_read():
    assert ROOMS["registry"] == ROOMS["files"] == 1
    assert ROOMS["layers"] < ROOMS["network"] < ROOMS["conversion"] < ROOMS["methods"]
    assert ROOMS["kdna"] == max(ROOMS.values())


def test_imports_flow_down():
    problems = find_problems(ROOT / "src", ROOMS)
    assert not problems, "\n".join(["", *problems])


def test_no_file_is_too_long():
    problems = find_long_files(ROOT / "src", ROOT / "tests")
    assert not problems, "\n".join(["", *problems])


def test_the_root_holds_few_files():
    assert len(list((ROOT / "src" / LIBRARY).glob("*.py"))) <= 10


def test_tests_mirror_the_tree():
    tests, source = ROOT / "tests", ROOT / "src"
    rooms = {path.name for path in (source / LIBRARY).iterdir() if path.is_dir()} | {SHELL}
    found = {path.name for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found - rooms <= {"experiments", "benchmarks", "fixtures"}


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()  # pytest imports them by it


# The checker itself, on small trees that break one rule each.

TABLE = {"low": 0, "network": 1, "methods": 2, "data": 3, "kdna": 4}


def write_tree(src: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(text, encoding="utf-8")
    return src


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("low.py", "import torch\nimport kerneldna.network", "low.py:2 imports kerneldna.network: a step up"),
        ("network/trace.py", "from ..methods import eca", "imports kerneldna.methods.eca: a step up"),
        ("low.py", "def f():\n    from kerneldna import network", "low.py:2 imports kerneldna.network"),
        ("low.py", "if TYPE_CHECKING:\n    import kerneldna.network.trace", "a step up, from low to network"),
        ("low.py", "from kerneldna import create_model", "imports kerneldna: the table of contents"),
        ("low.py", "import kerneldna.typo", "imports kerneldna.typo: a room without a row"),
        ("methods/eca.py", "from .odconv import gate", "imports kerneldna.methods.odconv: a member of a set"),
        ("data/samples.py", "from .datasets.cifar import load", "cifar: a member of a set"),
        ("data/datasets/coco.py", "from .cifar import load", "cifar: a member of a set"),
        ("methods/eca.py", "from kdna import app", "imports kdna: a step up, from methods to kdna"),
        ("extra.py", "", "src/kerneldna/extra.py has no row in the table"),
        ("../kdna/train.py", "from kdna import app", "imports kdna: another command"),
        ("../kdna/train.py", "import kdna.fuse", "imports kdna.fuse: another command"),
    ],
)
def test_a_broken_rule_is_reported(tmp_path: Path, file: str, text: str, expected: str):
    members = {
        "kerneldna/methods/odconv.py": "",
        "kerneldna/methods/eca.py": "",
        "kerneldna/data/datasets/cifar.py": "",
    }
    problems = find_problems(write_tree(tmp_path / "src", {**members, f"kerneldna/{file}": text}), TABLE)
    assert len(problems) == 1
    assert expected in problems[0]


def test_a_circle_is_reported(tmp_path: Path):
    files = {
        "kerneldna/network/a.py": "import kerneldna.network.b",
        "kerneldna/network/b.py": "from kerneldna.network import a",
    }
    problems = find_problems(write_tree(tmp_path / "src", files), TABLE)
    assert len(problems) == 1
    assert re.search(r"circle: (kerneldna\.network\.[ab] -> ){2}", problems[0])


def test_what_the_rules_allow(tmp_path: Path):
    files = {
        "kerneldna/__init__.py": "from kerneldna.network.plan import plan\nfrom kerneldna.methods.eca import ECA",
        "kerneldna/low.py": "import torch\nfrom importlib import import_module",
        "kerneldna/network/__init__.py": "from kerneldna.network.plan import plan",
        "kerneldna/network/trace.py": "from kerneldna import low",
        "kerneldna/network/plan.py": "from . import trace\nfrom kerneldna.low import x",
        "kerneldna/methods/__init__.py": "from kerneldna.methods import eca",
        "kerneldna/methods/eca.py": "import datasets\nfrom ..network.plan import plan",
        "kerneldna/data/samples.py": "",
        "kerneldna/data/datasets/cifar.py": "from kerneldna.data.samples import x",
        "kdna/__init__.py": "from kdna.train import train",
        "kdna/train.py": "import kerneldna as kd\nfrom kerneldna import methods, create_model",
    }
    assert find_problems(write_tree(tmp_path / "src", files), TABLE) == []


def test_a_long_file_is_reported(tmp_path: Path):
    src = write_tree(tmp_path / "src", {"fits.py": "\n" * MAX_LINES, "long.py": "\n" * (MAX_LINES + 1)})
    assert find_long_files(src) == ["src/long.py has 301 lines, 300 is the limit; split it by idea"]
