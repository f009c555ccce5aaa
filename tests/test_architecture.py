"""What holds the code together, and no reader should have to check: who imports whom, where statements stand."""

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
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.database.sql_objects import SqlFile, sql_files

PACKAGE = Path(__file__).parent.parent / "loracomp"
LAB = PACKAGE.parent / "packages" / "lab" / "loracomp_lab"
MODULES = sorted(PACKAGE.rglob("*.py"))
ALL_MODULES = [*MODULES, *sorted(LAB.rglob("*.py"))]

# Room, or module at the root -> what it may import.
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
# What single modules must not import: of the worker only its start knows models.
HEAVY = tuple(name for path in MODULES if (name := f"loracomp.engine.{path.stem}") and path.parent.name == "engine")
HEAVY = tuple(name for name in HEAVY if not name.endswith(("__init__", ".inflight", ".measuring")))
FORBIDDEN = [
    ("loracomp.composition", ("psycopg", "sqlalchemy")),
    ("loracomp.records", ("torch", "psycopg")),
    *(
        (
            f"loracomp.worker.{name}",
            (*HEAVY, "loracomp.model", "loracomp.registry", "torch", "transformers"),
        )
        for name in sorted(path.stem for path in (PACKAGE / "worker").glob("[a-z]*.py"))
        if name != "start"
    ),
]
# Statements about the schema itself: they make what queries.sql needs.
MAY_HOLD_SQL = {"loracomp.database.schema", "loracomp.database.sql_objects", "loracomp.database.tables"}
STATEMENT = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|CALL|CREATE|DROP|ALTER|GRANT|SET|LISTEN|NOTIFY|BEGIN)\s+\S"
)
# Blocks that call no function of their name: a view read, a row inserted, the connection itself.
NOT_CALLS = {"ping", "listen", "insert_with_expected", "job_results", "job_trace"}
NOT_CALLS |= {
    "exchange_encoders",
    "exchange_embeddings",
    "end_with_the_client",
    "sample_embeddings",
}
NOT_CALLS |= {"object_drops", "other_grants", "user_views", "lockable_tables", "lock_patience", "table_users"}
NOT_CALLS |= {"list_base_models", "show_next_encoder", "list_adapters", "known_digests", "list_policies"}
NOT_CALLS |= {"composite_type", "vector_types", "others_in_schemas"}
NOT_CALLS |= {"evaluation", "evaluation_accuracy", "evaluation_pair", "evaluation_rows"}
NOT_CALLS |= {"retrieved_examples", "composed_adapters", "job_attempts", "newest_jobs", "queues", "reported_queues"}
NOT_CALLS |= {"reported_workers", "reported_tasks", "transfer", "jobs_by_day", "failures", "waits", "accuracy"}
NOT_CALLS |= {"adapter_usage", "companions", "answers_of_tag", "report_age", "begin_page"}
NOT_CALLS |= {
    "may_work",
    "worker_status",
    "has_revision",
    "schema_revision",
    "sample_traces",
    "stored_examples",
    "most_helpful_adapter",
    "compare_with_base",
    "set_statement_timeout",
}


def name(path: Path) -> str:
    package = PACKAGE if path.is_relative_to(PACKAGE) else LAB
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


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
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def room(module: str) -> str:
    """The first name in the package: of a folder, or of a module at the root."""
    return module.split(".")[1] if "." in module else "__init__"


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


def test_help_lists_commands_by_the_first_lines_of_their_docstrings() -> None:
    app = typer.Typer()
    commands.register(app)
    functions = {command.name: getdoc(command.callback) for command in app.registered_commands}
    assert {name: text and text.splitlines()[0] for name, text in functions.items()} == {
        name: line for name, line in commands.COMMANDS.items() if name in functions
    }


def test_at_most_eight_modules_stand_at_the_root() -> None:
    assert len([path for path in MODULES if path.parent == PACKAGE]) <= 8


@pytest.mark.parametrize("importing", sorted({room(name(path)) for path in MODULES}))
def test_a_room_imports_what_it_may(importing: str) -> None:
    found = {
        (name(path), imported)
        for path in MODULES
        if room(name(path)) == importing
        for imported in imports(path)
        if inside(imported, "loracomp") and room(imported) in MAY_IMPORT
        if room(imported) not in MAY_IMPORT[importing] | {importing, "__init__"}
    }
    assert found == set()


def test_the_package_does_not_import_the_lab() -> None:
    assert {name(path) for path in MODULES if "loracomp_lab" in {each.split(".")[0] for each in imports(path)}} == set()


def test_the_table_of_rooms_has_no_other() -> None:
    assert {room(name(path)) for path in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize(("package", "forbidden"), FORBIDDEN, ids=[package for package, _ in FORBIDDEN])
def test_imports_go_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    found = {
        (name(path), imported)
        for path in MODULES
        if inside(name(path), package)
        for imported in imports(path)
        if any(inside(imported, banned) for banned in forbidden)
    }
    assert found == set()


def test_the_rooms_stand_in_the_docs() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    section = page.partition("## The rooms\n")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| `(\w+)` \| .+ \| ?(.*?) ?\|$", section, flags=re.MULTILINE)
    assert dict(shown) == {
        room: ", ".join(sorted(imported - LOWEST))
        for room, imported in MAY_IMPORT.items()
        if room not in LOWEST and not room.startswith("__")
    }


def test_statements_stand_in_queries_sql() -> None:
    found = {
        (name(path), node.lineno, node.value)
        for path in ALL_MODULES
        if not any(inside(name(path), module) for module in MAY_HOLD_SQL)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.match(node.value)
    }
    assert found == set()


def test_every_query_is_used_and_exists() -> None:
    used = {match for path in ALL_MODULES for match in re.findall(r"""QUERIES\[["'](\w+)["']\]""", path.read_text())}
    assert used == QUERIES.keys()


@pytest.mark.parametrize("query", QUERIES)
def test_no_comment_is_sent(query: str) -> None:
    """psycopg would take a % in it for a placeholder."""
    assert "--" not in QUERIES[query]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_calls_the_function_of_its_name(query: str) -> None:
    assert (f"loracomp.{query}(" in QUERIES[query]) == (query not in NOT_CALLS)


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_a_setting_says_what_it_is_and_what_it_defaults_to(setting: str) -> None:
    assert re.fullmatch(r".+\. Defaults to .+\.", Settings.model_fields[setting].description or "")


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_a_setting_stands_in_the_docs(setting: str) -> None:
    page = (PACKAGE.parent / "docs" / "operations.md").read_text()
    assert f"| `LORACOMP_{setting.upper()}` | {Settings.model_fields[setting].description} |" in page


@pytest.mark.parametrize(
    ("kind", "relation"), [("routing setting", "loracomp.policy"), ("trace column", "loracomp.route_trace")]
)
def test_what_a_new_setting_or_column_touches_stands_in_the_docs(
    kind: str, relation: str, connection: Connection
) -> None:
    """Each file of the list names the newest one, the last in the catalog; and of one at least no other file does."""
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    section = page.partition(f"## To add a {kind}\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^- `([^`]+)`:", section, flags=re.MULTILINE))
    columns = connection.execute(
        "SELECT attname AS name FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [relation],
    )
    touched = [files_that_name(row["name"]) for row in columns]
    assert listed <= touched[-1]
    assert listed in touched


def files_that_name(column: str) -> set[str]:
    """Of what is installed; migrations as their folder."""
    root = PACKAGE.parent
    return {
        "migrations/versions/" if path.match("migrations/versions/*") else path.relative_to(root).as_posix()
        for folder in ("loracomp", "sql", "migrations")
        for path in (root / folder).rglob("*.*")
        if path.suffix in {".py", ".sql"} and re.search(rf"\b{column}\b", path.read_text())
    }


def test_nothing_is_unpickled() -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    imported = {
        (name(path), module) for path in ALL_MODULES for module in imports(path) if module.split(".")[0] in unsafe
    }
    loaded = {
        (name(path), node.lineno)
        for path in ALL_MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) == "torch"
    }
    assert imported | loaded == set()


MADE = re.compile(r"^CREATE (?:FUNCTION|VIEW|MATERIALIZED VIEW) (?:loracomp|bi)\.(\w+)", flags=re.MULTILINE)


@pytest.mark.parametrize("file", sql_files(), ids=lambda file: file.path)
def test_a_sql_file_begins_with_what_it_holds(file: SqlFile) -> None:
    """With a comment, which names every function and view where there are several: the call tree."""
    heading = re.match(r"(--.*\n)+", file.source)
    assert heading, "begins with a comment"
    made = set(MADE.findall(file.source))
    missing = {name for name in made if not re.search(rf"\b{name}\b", heading[0])}
    assert len(made) == 1 or missing == set()


@pytest.mark.parametrize("file", sql_files(), ids=lambda file: file.path)
def test_a_call_tree_says_what_is_called(file: SqlFile) -> None:
    """A name that stands below another, of those that the file makes, is one that the other's text names."""
    heading = re.match(r"(--.*\n)+", file.source)
    assert heading
    texts: dict[str, str] = {}
    for name, body in zip(MADE.findall(file.source), MADE.split(file.source)[2::2], strict=True):
        texts[name] = texts.get(name, "") + body  # one name may stand for several functions
    above: list[tuple[int, str]] = []
    for line in heading[0].splitlines():
        entry = re.match(r"--( {3,})(?:trigger )?(?:\w+\.)?(\w+)(?:  |$)", line)
        if entry is None:
            continue
        depth, name = len(entry[1]), entry[2]
        above = [pair for pair in above if pair[0] < depth]
        if above and name in texts and above[-1][1] in texts:
            assert re.search(rf"\b{name}\b", texts[above[-1][1]]), f"{above[-1][1]} does not call {name}"
        above.append((depth, name))
