"""Registers all commands, and imports only the modules that the called command needs."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

from loracomp.errors import UsageError

COMMANDS = {
    "init": "Install or upgrade the database: extension, roles, tables, functions, views, grants. "
    "Running it again is safe.",
    "sql": "Print the statements that `init` runs, as a script for psql.",
    "demo": "Answer 16 example prompts with the shipped library, and print the answers and the adapters' weights.",
    "ask": "Insert a job, wait for its answer, and print it with its confidence and a short explanation.",
    "explain": "Explain how a job was answered: examples, tasks, weights, adapters, scores, timings.",
    "replay": "Answer jobs again with their stored compositions, and compare. "
    "Exits with 1 unless all answers are equal.",
    "worker": "Claim and answer jobs until SIGTERM. LORACOMP_* environment variables hold the settings.",
    "workers": "List the running workers and what each is doing, and count those that stopped within the last day.",
    "doctor": "Check server, schema, roles, registry and queue, and print problems. Exits with 1 if a check fails.",
    "refresh": "Recompute the reports of schema bi for days whose jobs have changed. They can be read while this runs.",
    "report": "Print a report as an HTML page: jobs, waits, accuracy, corrections, adapters. For analysts and admins.",
    "web": "Serve web pages about queue, answers, jobs and adapters. Visitors log in with their database role.",
    "train": "Train a LoRA adapter on a task's choices and write a PEFT folder. "
    "If it is killed, run it again to continue.",
    "evaluate": "Answer the same rows of tasks under several policies and compare. "
    "If it is stopped, run it again to continue.",
    "model": "Base models, for which adapters are trained.",
    "encoder": "The encoder that embeds examples and jobs.",
    "answers": "Tables whose rows get answers.",
    "task": "Tasks and their examples.",
    "adapter": "LoRA adapters in versions, each for one task and base model.",
    "library": "Folders of adapters with embedded examples.",
    "policy": "Named settings of routing and merging.",
    "db": "The embedded Postgres.",
}
"""What each command does, in the order in which a new user needs them: the first lines of their docstrings."""
PLACES = {
    "database": ("init", "sql", "db"),
    "demo": ("demo",),
    "jobs": ("ask", "explain", "replay", "worker"),
    "operations": ("workers", "doctor", "refresh"),
    "web": ("report", "web"),
    "models": ("model", "encoder"),
    "answers": ("answers",),
    "tasks": ("task", "policy"),
    "adapters": ("adapter", "library"),
}
"""The commands and groups of commands of each module."""
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
"""Commands, by group and verb, that the package loracomp-lab provides as entry points."""


def register(app: typer.Typer, wanted: str | None = None) -> None:
    """Add all commands. If one is `wanted`, add the others only with their name and help, because imports take long."""
    modules = {name: module for module, names in PLACES.items() for name in names}
    for name, line in COMMANDS.items():
        if wanted not in (None, name):
            app.command(name, help=line)(_listed)
        elif name in LAB:
            _add_of_the_lab(app, name)
        else:
            module = import_module(f"loracomp.cli.{modules[name]}")
            if group := getattr(module, f"{name}_app", None):
                for command in LAB:
                    if command.startswith(f"{name}."):
                        _add_of_the_lab(group, command)
                app.add_typer(group, name=name, help=line)
            else:
                app.command(name)(getattr(module, name))


def _listed() -> None:
    """A placeholder for a command that is listed but not run."""


def _add_of_the_lab(group: typer.Typer, command: str) -> None:
    name = command.rpartition(".")[2]
    if function := _lab_function(command):
        group.command(name)(function)
    else:
        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        group.command(name, context_settings=anything)(_missing(command))


def _lab_function(command: str) -> Callable[..., Any] | None:
    """The function of loracomp-lab for a command; None if the lab is not installed."""
    from importlib.metadata import entry_points

    for point in entry_points(group="loracomp.commands", name=command):
        function: Callable[..., Any] = point.load()
        return function
    return None


def _missing(command: str) -> Callable[[], Any]:
    """A command that only says how to install the lab."""

    def ask_for_the_lab() -> None:
        """Not installed: `pip install loracomp-lab`."""
        raise UsageError(f"`loracomp {command.replace('.', ' ')}` is part of loracomp-lab: `pip install loracomp-lab`")

    return ask_for_the_lab
