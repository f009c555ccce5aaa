"""`loracomp ray` where something is missing."""

import importlib.util

import pytest
from typer.testing import CliRunner

from loracomp import cli
from loracomp.cli import commands
from loracomp.cli.operations import _of_each_worker
from loracomp.errors import UsageError


@pytest.fixture(autouse=True)
def registered() -> None:
    if not cli.app.registered_commands:
        commands.register(cli.app)


def test_what_workers_of_one_node_cannot_share_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKER": "me", "METRICS_PORT": "9000", "BATCH_SIZE": "4", "DATABASE_URL": "old"}.items():
        monkeypatch.setenv(f"LORACOMP_{name}", value)
    passed = _of_each_worker("new")
    assert "LORACOMP_WORKER" not in passed
    names = ("METRICS_PORT", "BATCH_SIZE", "DATABASE_URL")
    assert [passed[f"LORACOMP_{name}"] for name in names] == ["0", "4", "new"]


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
