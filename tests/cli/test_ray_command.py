"""`loracomp ray` where something is missing."""

import importlib.util

import pytest
from typer.testing import CliRunner

from loracomp import cli
from loracomp.cli import commands
from loracomp.errors import UsageError


@pytest.fixture(autouse=True)
def registered() -> None:
    if not cli.app.registered_commands:
        commands.register(cli.app)


def refusal() -> str:
    result = CliRunner().invoke(cli.app, ["ray", "--workers", "1", "--address", "127.0.0.1:1"])
    assert isinstance(result.exception, UsageError)
    return str(result.exception)


def test_the_database_must_be_one_that_other_nodes_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORACOMP_DATABASE_URL", raising=False)
    assert "LORACOMP_DATABASE_URL is not set" in refusal()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="the extra ray is installed")
def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACOMP_DATABASE_URL", "postgresql://localhost/none")
    assert "pip install 'loracomp[ray]'" in refusal()
