"""What commands print, on streams of any encoding."""

import io
import re
import sys
import unicodedata

import pytest
import typer

from loracomp import cli

TEXT = "\x1b[31mé\u202e\U0001f600[/b]\x9b2J"
"""A text that colours a terminal, is not ASCII, contains what looks like markup, and turns the direction of a line."""
NAME = "".join(each for each in TEXT if unicodedata.category(each) != "Cc")
"""The same as the name of a policy, which must not contain control characters."""
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
SHOWN = {
    "answers list": [],
    "adapter list": [],
    "doctor": ["--all"],
    "encoder show": [],
    "explain": ["{job}"],
    "explain --html": ["{job}", "--html"],
    "explain --svg": ["{job}", "--svg"],
    "model list": [],
    "policy list": [],
    "policy show": [NAME],
    "refresh": [],
    "report": [],
    "sql": [],
    "task list": [],
    "workers": [],
}
"""The commands that only show something, with their arguments."""
ENCODINGS = ["ascii", "latin-1", "utf-8", "closed"]


def printed(monkeypatch: pytest.MonkeyPatch, arguments: list[str], encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command whose streams have this encoding, or are closed."""
    raw = io.BytesIO(), io.BytesIO()
    text = "utf-8" if encoding == "closed" else encoding
    monkeypatch.setattr(sys, "stdout", None if encoding == "closed" else io.TextIOWrapper(raw[0], text))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw[1], text))
    monkeypatch.setattr(sys, "argv", ["loracomp", *arguments])
    monkeypatch.setattr(cli, "app", typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False))
    cli.app.callback()(cli._options)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stdout.flush()
    sys.stderr.flush()
    if encoding == "closed":
        sys.stdout.close()
    # typer writes UTF-8 where a stream says that it is ASCII, and so are pages wherever they are read.
    page = {"--html", "--svg", "report"} & {*arguments}
    out, err = (stream.getvalue().decode("utf-8" if page or encoding == "ascii" else text) for stream in raw)
    return int(ended.value.code or 0), out, err


def arguments_of(name: str, job: int) -> list[str]:
    return [*name.partition(" --")[0].split(), *(each.replace("{job}", str(job)) for each in SHOWN[name])]
