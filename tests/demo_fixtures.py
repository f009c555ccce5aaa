"""A shell in which the demo has run, as a newcomer has it after the first command."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import place_for_a_server
from forked import programs
from loracomp.config import load_settings

ROOT = Path(__file__).parent.parent
INSTALLED = Path(sys.executable).parent
"""Folder of the command `loracomp` as pip has installed it."""


@pytest.fixture(scope="session")
def demo() -> Iterator[dict[str, str]]:
    """Environment of a shell in which the demo has run once, on an embedded server of its own."""
    with place_for_a_server() as data:
        # Share this machine's dequantised base model, because it takes ten seconds to make; test_models.py makes one.
        models = load_settings().home / "models"
        models.mkdir(parents=True, exist_ok=True)
        (data.parent / "models").symlink_to(models)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LORACOMP_")},
            "LORACOMP_HOME": str(data.parent),
            "PATH": f"{INSTALLED}:{os.environ['PATH']}",
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }
        execute(["loracomp", "demo"], environment)
        yield environment | {"PATH": f"{programs()}:{environment['PATH']}"}
        execute(["loracomp", "db", "stop"], environment)


def run(
    command: list[str], environment: dict[str, str], source: str | None = None, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's folder, whatever its exit code; returns it with its output."""
    return subprocess.run(
        command, input=source, env=environment, cwd=folder, text=True, capture_output=True, timeout=900, check=False
    )


def execute(command: list[str], environment: dict[str, str], source: str | None = None, folder: Path = ROOT) -> str:
    """Run a command that must exit with 0; returns its standard output."""
    done = run(command, environment, source, folder)
    assert done.returncode == 0, f"{' '.join(command)} exits with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
