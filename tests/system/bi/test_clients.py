"""Clients that analysts use, as a member of loracomp_analyst: the catalogue, every view, types and comments.

SQLAlchemy and pandas run with the other tests. ODBC and JDBC need the system's drivers: `make clients`.
"""

import socket
from collections import defaultdict
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict

from conftest import create_database, drop_database, place_for_a_server, url_of
from loracomp.database import connections as db
from loracomp.database import embedded, schema
from people_data import fill_every_view, views
from people_fixtures import login

JDBC_DRIVER = Path("/usr/share/java/postgresql.jar")
COMMENTS = """
SELECT c.relname AS view, obj_description(c.oid, 'pg_class') AS comment,
    array_agg(col_description(c.oid, a.attnum) ORDER BY a.attnum) AS columns
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'bi'::regnamespace AND c.relkind = 'v' AND a.attnum > 0 GROUP BY c.oid
"""


def comments(url: str) -> dict[str, dict[str, Any]]:
    """Comment of each view and of its columns, as the server has them."""
    with db.connect(url) as connection:
        return {row.pop("view"): row for row in connection.execute(COMMENTS)}


# SQLAlchemy and pandas.


@pytest.fixture(scope="module")
def engine(server: str, template: str, logins: None) -> Iterator[sqlalchemy.Engine]:
    name = f"clients_{login('ana')}"
    url = create_database(server, name, template)
    with db.connect(url) as owner:
        fill_every_view(owner)
    given = conninfo_to_dict(url_of(server, name, user=login("ana")))
    query = {"host": given["host"], "port": str(given.get("port", 5432))}
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("postgresql+psycopg", username=given["user"], database=name, query=query)
    )
    yield engine
    engine.dispose()
    drop_database(server, name)


@pytest.fixture(scope="module")
def of_bi(server: str, engine: sqlalchemy.Engine) -> dict[str, dict[str, str]]:
    """Views of bi with their columns' types, as the server's catalog has them."""
    with db.connect(url_of(server, str(engine.url.database))) as owner:
        return views(owner)


SQLALCHEMY_TYPES = {
    "bigint": sqlalchemy.BIGINT,
    "integer": sqlalchemy.INTEGER,
    "text": sqlalchemy.TEXT,
    "boolean": sqlalchemy.BOOLEAN,
    "double precision": sqlalchemy.DOUBLE_PRECISION,
    "timestamp with time zone": sqlalchemy.TIMESTAMP,
    "date": sqlalchemy.DATE,
}


def test_sqlalchemy_reflects_views_types_and_comments(
    engine: sqlalchemy.Engine, of_bi: dict[str, dict[str, str]]
) -> None:
    inspector = sqlalchemy.inspect(engine)
    assert set(inspector.get_view_names("bi")) == set(of_bi)
    for view, columns in of_bi.items():
        found = inspector.get_columns(view, "bi")
        assert [column["name"] for column in found] == list(columns)
        for column in found:
            assert isinstance(column["type"], SQLALCHEMY_TYPES[columns[column["name"]]]), f"{view}.{column['name']}"
        assert all(column["comment"] for column in found)
        assert inspector.get_table_comment(view, "bi")["text"]


def test_pandas_reads_every_view_in_its_own_types(engine: sqlalchemy.Engine, of_bi: dict[str, dict[str, str]]) -> None:
    """Integers with nulls are floats to pandas, and booleans with nulls objects."""
    kinds = {
        "bigint": "if",
        "integer": "if",
        "text": "O",
        "boolean": "bO",
        "double precision": "f",
        "timestamp with time zone": "M",
        "date": "M",
    }
    for view, columns in of_bi.items():
        frame = pandas.read_sql_table(view, engine, schema="bi")
        assert list(frame.columns) == list(columns)
        assert len(frame), view
        for column, kind in columns.items():
            if frame[column].notna().any():
                assert frame[column].dtype.kind in kinds[kind], f"{view}.{column} is {frame[column].dtype}"


# ODBC and JDBC, over TCP with a password.


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Any]]:
    """Host, port, user and password of an analyst, who is asked for it, and the owner's url."""
    with place_for_a_server() as folder:
        url = embedded.start(folder)
        schema.initialize(url)
        with db.connect(url) as owner:
            fill_every_view(owner)
            owner.execute("CREATE ROLE ana LOGIN PASSWORD 'secret' IN ROLE loracomp_analyst")
            rules = Path(owner.execute("SHOW hba_file").fetchone()["hba_file"])  # type: ignore[index]
        rules.write_text(f"host all all 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        with socket.socket() as kept:
            # Kept until the server has it, or anybody's connection might take it meanwhile.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", 0))
            port = kept.getsockname()[1]
            options = f"-h 127.0.0.1 -p {port} -k '{conninfo_to_dict(url)['host']}'"
            embedded._run(folder, "pg_ctl", "restart", "-w", "-t", "120", "-l", str(folder / "log"), "-o", options)
        yield {"host": "127.0.0.1", "port": port, "user": "ana", "password": "secret", "owner": embedded.start(folder)}
        embedded.stop(folder)


@pytest.fixture(scope="module")
def odbc(served: dict[str, Any]) -> Iterator[Any]:
    import pyodbc

    connection = pyodbc.connect(
        "Driver=PostgreSQL Unicode;Database=postgres;TextAsLongVarchar=0;BoolsAsChar=0;"
        f"Server={served['host']};Port={served['port']};UID={served['user']};PWD={served['password']}"
    )
    yield connection
    connection.close()


ODBC_TYPES = {
    "bigint": "int8",
    "integer": "int4",
    "text": "text",
    "boolean": "bool",
    "double precision": "float8",
    "timestamp with time zone": "timestamptz",
    "date": "date",
}
PYTHON_TYPES = {
    "bigint": int,
    "integer": int,
    "text": str,
    "boolean": bool,
    "double precision": float,
    "timestamp with time zone": datetime,
    "date": date,
}


@pytest.mark.clients
def test_odbc_lists_views_and_types(odbc: Any, of_bi: dict[str, dict[str, str]]) -> None:
    assert {row.table_name for row in odbc.cursor().tables(schema="bi", tableType="VIEW")} == set(of_bi)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in odbc.cursor().columns(schema="bi"):
        found[row.table_name][row.column_name] = row.type_name
    assert found == {
        view: {name: ODBC_TYPES[kind] for name, kind in columns.items()} for view, columns in of_bi.items()
    }


@pytest.mark.clients
def test_odbc_reads_every_view(odbc: Any, of_bi: dict[str, dict[str, str]]) -> None:
    for view, columns in of_bi.items():
        cursor = odbc.cursor().execute(f"SELECT * FROM bi.{view}")
        rows = cursor.fetchall()
        assert rows, view
        for place, (column, kind) in enumerate(columns.items()):
            kinds = {type(row[place]) for row in rows if row[place] is not None}
            assert kinds <= {PYTHON_TYPES[kind]}, f"{view}.{column}"


@pytest.mark.clients
def test_odbc_asks_the_catalogue_for_comments(odbc: Any, served: dict[str, Any]) -> None:
    """Its own REMARKS are empty; docs/bi.md has the query to use instead."""
    rows = odbc.cursor().execute(COMMENTS.replace("array_agg(", "count(").replace(" ORDER BY a.attnum", "")).fetchall()
    assert {(view, comment, count) for view, comment, count in rows} == {
        (view, found["comment"], len(found["columns"])) for view, found in comments(served["owner"]).items()
    }


@pytest.fixture(scope="module")
def jdbc(served: dict[str, Any]) -> Iterator[Any]:
    import jpype
    import jpype.dbapi2

    jpype.startJVM(classpath=[str(JDBC_DRIVER)])
    connection = jpype.dbapi2.connect(
        f"jdbc:postgresql://{served['host']}:{served['port']}/postgres",
        driver="org.postgresql.Driver",
        driver_args={"user": served["user"], "password": served["password"]},
    )
    yield connection
    connection.close()


JDBC_TYPES = {
    "bigint": "int8",
    "integer": "int4",
    "text": "text",
    "boolean": "bool",
    "double precision": "float8",
    "timestamp with time zone": "timestamptz",
    "date": "date",
}


def rows_of(result: Any, *names: str) -> Iterator[tuple[str, ...]]:
    while result.next():
        yield tuple(str(result.getString(name)) for name in names)


@pytest.mark.clients
def test_jdbc_lists_views_types_and_comments(
    jdbc: Any, served: dict[str, Any], of_bi: dict[str, dict[str, str]]
) -> None:
    meta = jdbc.connection.getMetaData()
    expected = comments(served["owner"])
    assert dict(rows_of(meta.getTables(None, "bi", "%", ["VIEW"]), "TABLE_NAME", "REMARKS")) == {
        view: found["comment"] for view, found in expected.items()
    }
    found: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    names = ("TABLE_NAME", "COLUMN_NAME", "TYPE_NAME", "REMARKS")
    for view, *column in rows_of(meta.getColumns(None, "bi", "%", "%"), *names):
        found[view].append(tuple(column))
    assert found == {
        view: [
            (name, JDBC_TYPES[kind], remark)
            for (name, kind), remark in zip(columns.items(), expected[view]["columns"], strict=True)
        ]
        for view, columns in of_bi.items()
    }


@pytest.mark.clients
def test_jdbc_reads_every_view(jdbc: Any, of_bi: dict[str, dict[str, str]]) -> None:
    for view, columns in of_bi.items():
        with jdbc.cursor() as cursor:
            cursor.execute(f"SELECT * FROM bi.{view}")
            rows = cursor.fetchall()
        assert rows, view
        for place, (column, kind) in enumerate(columns.items()):
            found = {type(row[place]) for row in rows if row[place] is not None}
            assert all(issubclass(one, PYTHON_TYPES[kind]) for one in found), f"{view}.{column}: {found}"


@pytest.mark.clients
@pytest.mark.parametrize("client", ["odbc", "jdbc"])
def test_an_analyst_is_kept_to_bi(client: str, request: pytest.FixtureRequest) -> None:
    cursor = request.getfixturevalue(client).cursor()
    with pytest.raises(Exception, match="permission denied for table job"):
        cursor.execute("SELECT prompt FROM loracomp.job")
    request.getfixturevalue(client).rollback()
