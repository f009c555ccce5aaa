"""Arguments, settings and signals that a command refuses, or understands in one way, before it needs a database."""

import time
from datetime import datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loracomp import cli
from loracomp.cli import commands
from loracomp.cli.jobs import local_time
from loracomp.cli.tasks import _setting
from loracomp.config import load_settings, unknown_variables
from loracomp.database import embedded
from loracomp.errors import UsageError

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "Hot?", "--patience", "nan"], "--patience"),
        (["answers", "try", "t", "{a}", "--patience", "nan"], "--patience"),
        (["replay", "1", "--tolerance", "nan"], "--tolerance"),
        (["answers", "create", "a", "t", "{a}", "--filter", DEEP], "--filter"),
        (["answers", "alter", "a", "--tags", '{"a":' * 100_000], "--tags"),
        (["replay", "--all-since", "0001-01-01"], "too far from now"),
    ],
)
def test_an_argument_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.setenv("TZ", "Pacific/Apia")
    time.tzset()
    if not cli.app.registered_groups:
        commands.register(cli.app)
    done = CliRunner().invoke(cli.app, arguments)
    monkeypatch.undo()
    time.tzset()
    assert (done.exit_code, words in done.output) == (2, True), done.output[-500:]


def test_a_setting_that_is_nested_too_deep_is_a_text() -> None:
    assert _setting(f"k={DEEP}") == ("k", DEEP)


def test_a_time_is_meant_in_the_time_zone_of_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    meant = local_time(datetime(2026, 12, 1))
    monkeypatch.undo()
    time.tzset()
    assert meant is not None and meant.isoformat() == "2026-12-01T00:00:00+09:00"
    assert local_time(None) is None


def test_a_file_of_settings_in_another_encoding_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("LORACOMP_DEVICE=cpu # für alle\n".encode("latin-1"))
    for read in (load_settings, unknown_variables):
        with pytest.raises(UsageError, match=r"\.env is not UTF-8"):
            read()


def test_no_server_runs_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert not embedded.is_running(tmp_path / "home" / "loracomp" / "postgres")


def test_an_interrupt_while_modules_are_imported_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(app: typer.Typer, wanted: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "register", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
