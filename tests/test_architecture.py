"""Imports: their direction, and what is slow; settings and queries that exist, and safe loading."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from inspect import getdoc
from pathlib import Path

import pytest
import typer

from loracomp.cli import commands
from loracomp.config import Settings
from loracomp.database.queries import QUERIES

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "loracomp").rglob("*.py"))
LAB = sorted((ROOT / "packages" / "lab" / "loracomp_lab").rglob("*.py"))

# Room, or module beside the rooms -> what it may import. docs/architecture.md says what is in each.
LOWEST = {"config", "errors", "metrics", "records"}
SERVING = LOWEST | {"composition", "database", "model", "registry"}
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "records": set(),
    "config": {"errors"},
    "metrics": {"records"},
    "model": {"errors", "records"},
    "database": {"config", "errors", "records"},
    "composition": LOWEST | {"model"},
    "registry": LOWEST | {"composition", "database", "model"},
    "engine": SERVING,
    "replay": SERVING | {"engine"},
    "worker": SERVING | {"engine"},
    "web": LOWEST | {"database"},
    "cli": SERVING | {"engine", "replay", "web", "worker"},
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Modules that a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_one_way() -> None:
    """The lab is another distribution, which is not there for everybody."""
    wrong = []
    for path in MODULES:
        importing = path.relative_to(ROOT / "loracomp").with_suffix("").parts[0]
        for name in imports(path):
            package, _, rest = name.partition(".")
            imported = rest.partition(".")[0]
            allowed = MAY_IMPORT[importing] | {importing}
            if package == "loracomp_lab" or (package == "loracomp" and imported in MAY_IMPORT.keys() - allowed):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_commands_import_what_is_slow_only_where_they_need_it() -> None:
    program = (
        "from loracomp.cli import app, commands; import sys; commands.register(app{}); print(*{} & set(sys.modules))"
    )
    for wanted, slow in (
        ("", {"torch", "alembic", "sqlalchemy", "numpy"}),
        (", wanted=''", {"psycopg", "pydantic", "importlib.metadata"}),  # what --help does
    ):
        command = [sys.executable, "-c", program.format(wanted, slow)]
        assert subprocess.check_output(command, text=True).split() == []


def test_a_worker_imports_no_torch_until_its_engine_does() -> None:
    """Tests start dozens of workers with an engine that computes nothing, and torch would take each of them seconds."""
    program = "import queue_worker, sys; print(*{'torch', 'transformers', 'sqlalchemy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT / "tests").split() == []


def test_help_lists_commands_by_the_first_lines_of_their_docstrings() -> None:
    app = typer.Typer()
    commands.register(app)
    functions = {command.name: getdoc(command.callback) for command in app.registered_commands}
    assert {name: text and text.splitlines()[0] for name, text in functions.items()} == {
        name: line for name, line in commands.COMMANDS.items() if name in functions
    }


def test_every_query_is_used_and_exists() -> None:
    used = {
        match for path in [*MODULES, *LAB] for match in re.findall(r"""QUERIES\[["'](\w+)["']\]""", path.read_text())
    }
    steps = re.findall(r'Step\("(\w+)"', (ROOT / "loracomp" / "worker" / "keeper.py").read_text())
    assert used | {*steps} - {"embed"} == QUERIES.keys()  # the step embed is a function of the engine


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_a_setting_stands_in_the_docs(setting: str) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert f"| `LORACOMP_{setting.upper()}` | {Settings.model_fields[setting].description} |" in page


def test_nothing_is_unpickled() -> None:
    """An adapter's file from elsewhere must not run code."""
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in [*MODULES, *LAB]:
        assert not unsafe & {name.split(".")[0] for name in imports(path)}, path
        called = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        assert "torch.load" not in called, path
