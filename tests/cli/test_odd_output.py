"""What commands print: others' texts on a terminal, any encoding of stdout, and none."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.main import get_command

from forked import programs
from job_data import REPORT
from loracomp import cli
from loracomp.cli import commands, common
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from people_data import answer, claim, load, submit
from printed import ENCODINGS, NAME, OBEYED, SHOWN, TEXT, arguments_of, printed


@pytest.fixture
def job(connection: db.Connection, database: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """A failed job, whose error a worker wrote; TEXT stands in everything else that lists show."""
    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    examples = load(connection)
    answer(connection, submit(connection, TEXT), examples, output=TEXT)
    connection.execute("SELECT loracomp.set_policy(%s, '{}')", [NAME])
    connection.execute("UPDATE loracomp.policy SET description = %s", [TEXT])
    connection.execute("UPDATE loracomp.task SET description = %s", [TEXT])
    connection.execute(QUERIES["report_worker"], REPORT | {"name": TEXT})
    failed = submit(connection, TEXT, max_attempts=1)
    token = claim(connection, failed, worker=TEXT)[failed]
    statement = "SELECT loracomp.fail_jobs(ARRAY[%s], ARRAY[%s]::bigint[], ARRAY['odd'], ARRAY[%s], ARRAY[false])"
    connection.execute(statement, [failed, token, TEXT])
    return failed


def test_all_lists_are_tried() -> None:
    app = typer.Typer()
    commands.register(app)
    groups = {name: getattr(group, "commands", {}) for name, group in get_command(app).commands.items()}
    assert {
        f"{name} {verb}" for name, verbs in groups.items() for verb in verbs if verb in ("list", "show")
    } <= SHOWN.keys()


def test_no_command_passes_on_what_a_terminal_obeys_whatever_its_encoding(
    job: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, encoding in product(SHOWN, ENCODINGS):
        arguments = arguments_of(name, job)
        code, out, err = printed(monkeypatch, arguments, encoding)
        assert code == 0 or name == "doctor", (name, encoding, err)
        assert not OBEYED.search(re.sub("[\t\r\n]", "", out + err)), (name, encoding)
        if name not in ("report", "sql", "explain --html", "explain --svg"):
            code, out, _ = printed(monkeypatch, [*arguments, "--json"], encoding)
            assert code == 0 or name == "doctor", (name, encoding, err)
            if encoding != "closed":
                json.loads(out, parse_constant=pytest.fail)


def test_nor_does_a_table_on_a_terminal(job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (common, *(import_module(f"loracomp.cli.{place}") for place in commands.PLACES)):
        if hasattr(module, "console"):
            monkeypatch.setattr(module, "console", Console(force_terminal=True, no_color=True, width=200))
    for name, encoding in product(["task list", "policy list", "policy show", "workers", "explain"], ENCODINGS):
        _, out, _ = printed(monkeypatch, arguments_of(name, job), encoding)
        assert not {"\x1b[31m", "\u202e", "\x9b"} & {*out, *re.findall(r"\x1b.{4}", out)}, (name, encoding)


def test_the_error_at_the_end_does_not_either(job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise cli.LoracompError(f"job 7 failed: {TEXT}")

    monkeypatch.setattr("loracomp.cli.operations.run_query", fail)
    for encoding in ENCODINGS:
        code, out, err = printed(monkeypatch, ["workers"], encoding)
        assert (code, out, err.startswith("error: job 7 failed: ")) == (1, "", True)
        assert not OBEYED.search(err.strip())


def test_a_closed_stdin_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    cli._open_streams()
    with sys.stdin:
        assert sys.stdin.buffer.read() == b""


def test_json_is_json_whatever_the_numbers_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": [float("nan"), float("inf"), (float("-inf"),)], "b": "\ud800é\U0001f600", "c": {"d": 1e-320}}
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors="backslashreplace"))
        common.emit_json(value)
        sys.stdout.flush()
        read = json.loads(raw.getvalue().decode(encoding), parse_constant=pytest.fail)
        assert read == {"a": ["nan", "inf", ["-inf"]], "b": value["b"], "c": value["c"]}


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_pages_on_a_port_in_use_say_so(job: int, monkeypatch: pytest.MonkeyPatch, host: str, family: int) -> None:
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        code, out, err = printed(monkeypatch, ["web", "--host", host, "--port", str(port)])
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"error: cannot listen on port {port} of {host}: Address .* in use.*; name another --port or --host\n", err
    )


@pytest.mark.parametrize("command", [["db", "status"], ["sql"], ["--help"]], ids=" ".join)
def test_what_cannot_be_written_ends_a_command_without_a_stack_trace(command: list[str], tmp_path: Path) -> None:
    """Whether the buffer of stdout is written while the command runs, or when it ends."""
    environment = {**os.environ, "LORACOMP_HOME": str(tmp_path)}
    reads, writes = os.pipe()
    os.close(reads)
    for output, told in (
        (os.open("/dev/full", os.O_WRONLY), "error: [Errno 28] No space left on device\n"),
        (writes, ""),
    ):
        done = subprocess.run(
            [programs() / "loracomp", *command], env=environment, stdout=output, stderr=subprocess.PIPE, check=False
        )
        os.close(output)
        assert (done.returncode, done.stderr.decode()) == (1, told)
