"""Arguments, settings and signals that a command refuses, or understands in one way, before it needs a database."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from loracomp import cli
from loracomp.cli import commands
from loracomp.cli.common import BIGINT, INTEGER, storable_json
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
        (["adapter", "measure", "tea", "--tasks", "999999999999"], "1000"),
        (["explain", "9223372036854775808"], "9223372036854775807"),
        (["answers", "create", "a", "t", "{a}", "--filter", DEEP], "--filter"),
        (["answers", "alter", "a", "--tags", '{"a":' * 100_000], "--tags"),
        (["answers", "create", "a", "t", "{a}", "--tags", '{"a": NaN}'], "--tags"),
        (["answers", "create", "a", "t", "{a}", "--filter", '{"a": [1e400]}'], "--filter"),
        (["answers", "alter", "a", "--tags", r'{"\u0000": 1}'], "--tags"),
        (["answers", "alter", "a", "--filter", r'{"a": "\ud800"}'], "--filter"),
        (["answers", "alter", "a", "--filter", '{"a": "\udcff"}'], "--filter"),
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


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["ask", "a\0b"], "prompt"),
        (["ask", "Hot?", "--choice", "a", "--choice", "\udcff"], "choices"),
        (["ask", "Hot?", "--stop", "\udcff"], "stop"),
        (["ask", "Hot?", "--policy", "n\udcff"], "policy"),
        (["ask", "Hot?", "--exclude-task", "\udcff"], "exclude_tasks"),
        (["policy", "set", "p", "k=1e400"], "k"),
        (["policy", "set", "p", "description=\udcff"], "description"),
    ],
)
def test_what_json_cannot_have_is_named(arguments: list[str], name: str) -> None:
    if not cli.app.registered_groups:
        commands.register(cli.app)
    done = CliRunner().invoke(cli.app, arguments)
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(f"{name} contains "), done.exception


def test_all_else_is_stored_as_it_is() -> None:
    """A backslash before u0000 is no NUL character."""
    values = {"a": [r"\u0000", "\\", r"\\u0000", "é\U0001f600", None, 1e308], "b": {"c": True}}
    assert storable_json(values).obj == values


def integers(app: typer.Typer, path: str = "") -> Iterator[tuple[str, Any]]:
    """The integers that the commands take, each with typer's description of the option or argument."""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from integers(group.typer_instance, f"{group.name} ")
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kinds, described = (hint, None) if get_origin(hint) is not Annotated else get_args(hint)
            if int in (kinds, *get_args(kinds)):
                yield f"{path}{command.name or command.callback.__name__} {name}", described


def test_every_integer_has_a_range_that_the_database_can_store() -> None:
    if not cli.app.registered_groups:
        commands.register(cli.app)
    # The ranges of training are in TrainingConfig.
    ranges = {name: described for name, described in integers(cli.app) if not name.startswith("train ")}
    assert {"adapter measure tasks", "explain job", "library measure rows"} < ranges.keys()
    for name, given in ranges.items():
        assert given is not None and None not in (given.min, given.max), name
        assert given.min >= -10 and given.max <= (
            BIGINT if name in {"explain job", "replay job", "ask seed"} else INTEGER
        ), name


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
