"""Commands that another distribution brings."""

import tomllib
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from demo_fixtures import ROOT
from loracomp.cli import commands
from loracomp.errors import UsageError


@pytest.mark.parametrize("command", commands.LAB)
def test_where_the_lab_is_missing_its_commands_say_how_to_install_it(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_lab_function", lambda _: None)
    app, words = typer.Typer(), command.split(".")
    commands.register(app, wanted=words[0])
    done = CliRunner().invoke(app, [*words, "rte", "--output", "folder"])
    assert isinstance(done.exception, UsageError)
    told = f"`loracomp {' '.join(words)}` is part of loracomp-lab: `pip install loracomp-lab`"
    assert (str(done.exception), done.output) == (told, "")


def test_the_lab_brings_the_commands_that_are_missing_without_it() -> None:
    project = tomllib.loads((ROOT / "packages" / "lab" / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["loracomp.commands"]
    assert points.keys() == set(commands.LAB)
    assert all(callable(EntryPoint(name, value, "").load()) for name, value in points.items())
