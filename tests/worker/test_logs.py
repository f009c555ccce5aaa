"""Log lines: for people, and for machines, with the jobs that they are about."""

import json
import logging
from collections.abc import Iterator

import pytest

from loracomp.worker.logfmt import configure, logfmt


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger; changes that `configure` makes to the root logger are undone at the end."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    yield logging.getLogger("loracomp.test")
    root.handlers = before
    root.setLevel(level)


def test_a_line_for_people(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", "info")
    log.debug(logfmt("unsaid"))
    log.info(logfmt("claimed", jobs=[1, 2], error='a "word"', empty=""))
    (line,) = capsys.readouterr().err.splitlines()
    time, _, rest = line.partition(" ")
    assert len(time) == len("2026-11-25T13:00:00.123Z") and time.endswith("Z")
    assert rest == 'info claimed jobs=1,2 error="a \\"word\\"" empty=""'


def test_a_line_for_machines(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "warning")
    log.info(logfmt("unsaid"))
    log.warning(logfmt("failed", job=7, retry=True, error=ValueError("line\nbreak ü")))
    try:
        raise KeyError("x")
    except KeyError as error:
        log.exception(logfmt("job_raised", job=8), exc_info=error)
    logging.getLogger("another").warning("100 %s", "%")
    failed, raised, other = map(json.loads, capsys.readouterr().err.splitlines())
    assert failed.pop("time") <= raised["time"]
    said = {"event": "failed", "job": 7, "retry": True, "error": "line\nbreak ü"}
    assert failed == {"level": "warning", "logger": "loracomp.test", **said}
    assert raised["job"] == 8 and "KeyError: 'x'" in raised["traceback"]
    assert other["event"] == "100 %"
