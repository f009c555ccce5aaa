"""Commands that another distribution brings."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest

from demo_fixtures import ROOT
from loracomp.cli import commands

WITHOUT_THE_LAB = """
from loracomp.cli import commands, main
commands._lab_function = lambda command: None
main()
"""


@pytest.mark.parametrize("command", commands.LAB)
def test_where_the_lab_is_missing_its_commands_say_how_to_install_it(command: str) -> None:
    words = command.split(".")
    program = [sys.executable, "-c", WITHOUT_THE_LAB, *words, "rte", "--output", "folder"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    told = f"error: `loracomp {' '.join(words)}` is part of loracomp-lab: `pip install loracomp-lab`\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_the_lab_brings_the_commands_that_are_missing_without_it() -> None:
    project = tomllib.loads((ROOT / "packages" / "lab" / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["loracomp.commands"]
    assert points.keys() == set(commands.LAB)
    assert all(callable(EntryPoint(name, value, "").load()) for name, value in points.items())
