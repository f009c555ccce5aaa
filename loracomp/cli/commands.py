"""Registers all commands on the application."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import typer

from loracomp.cli import adapters, answers, database, demo, jobs, library, models, operations, tasks
from loracomp.errors import UsageError

GROUPS = {
    "model": models.model_app,
    "encoder": models.encoder_app,
    "answers": answers.answers_app,
    "task": tasks.task_app,
    "adapter": adapters.adapter_app,
    "library": library.library_app,
    "policy": tasks.policy_app,
    "db": database.db_app,
}
LAB = (
    "train",
    "evaluate",
    "task.import-catalogue",
    "adapter.convert",
    "adapter.card",
    "library.build",
    "library.train",
    "library.measure",
)
"""Commands, by group and verb, that the package loracomp-lab brings: its entry points in the group of this name."""


def register(app: typer.Typer) -> None:
    """Add all commands, in the order in which a new user needs them; `--help` shows that order."""
    app.command()(database.init)
    app.command()(database.sql)
    app.command()(demo.demo)
    app.command()(jobs.ask)
    app.command()(jobs.explain)
    app.command()(jobs.replay)
    app.command()(jobs.worker)
    app.command()(operations.workers)
    app.command()(operations.doctor)
    app.command()(operations.refresh)
    installed = {point.name: point for point in entry_points(group="loracomp.commands")}
    for name in LAB:
        group, _, verb = name.rpartition(".")
        parent = GROUPS[group] if group else app
        if name in installed:
            parent.command(verb)(installed[name].load())
        else:
            parent.command(verb, context_settings=_ANYTHING)(_missing(f"{group} {verb}".strip()))
    for name, commands in GROUPS.items():
        app.add_typer(commands, name=name)


_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True}


def _missing(command: str) -> Callable[[], Any]:
    """A command that says how to install it."""

    def ask_for_the_lab() -> None:
        """Not installed: `pip install loracomp-lab`."""
        raise UsageError(f"`loracomp {command}` is part of loracomp-lab: `pip install loracomp-lab`")

    return ask_for_the_lab
