"""Reads recipes: YAML files that say how each adapter of a library is trained.

`defaults` has settings for all tasks (`training.config`). `tasks` has the settings of each entry or family, and may
have `start_from`: another task of the recipe, from whose adapter the training starts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from loracomp.errors import NotFoundError, UsageError, wrong_fields
from loracomp_lab.catalogue import Entry, Family, load_task
from loracomp_lab.training.config import TrainingConfig, training_config

SHIPPED = Path(__file__).with_name("recipe.yaml")


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    defaults: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """How to train the adapter of one task."""

    entry: Entry | Family
    config: TrainingConfig
    start_from: str | None
    """The task from whose adapter the training starts; None: from new factors."""

    @property
    def task(self) -> str:
        """The task's name."""
        return self.entry.task


def read_recipe(path: Path = SHIPPED) -> dict[str, TaskRecipe]:
    """Read the recipe of each task, in the file's order, except that a task always comes after the task that it starts
    from. Raises NotFoundError or UsageError naming the file, the task and the setting.
    """
    recipe = _read(path)
    tasks = {task: _task(path, task, recipe.defaults | (own or {})) for task, own in recipe.tasks.items()}
    return {task: tasks[task] for task in _order(path, tasks)}


def with_starts(recipe: dict[str, TaskRecipe], tasks: list[str]) -> dict[str, TaskRecipe]:
    """Return the part of a recipe for these tasks and the tasks that they start from. Raises UsageError for an unknown
    task."""
    if unknown := [task for task in tasks if task not in recipe]:
        raise UsageError(f"task {', '.join(unknown)}: not in the recipe; it has {', '.join(recipe)}")
    wanted = set(tasks)
    for task in reversed(recipe):  # a recipe lists a task after the task that it starts from
        if task in wanted and (start := recipe[task].start_from):
            wanted.add(start)
    return {task: each for task, each in recipe.items() if task in wanted}


def _read(path: Path) -> _Recipe:
    try:
        return _Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise NotFoundError(f"recipe {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path}: not YAML: {error}") from None
    except ValidationError as error:
        raise UsageError(f"recipe {path}: {wrong_fields(error)}") from None


def _task(path: Path, task: str, settings: dict[str, Any]) -> TaskRecipe:
    entry = load_task(task)
    start_from = settings.pop("start_from", None)
    try:
        return TaskRecipe(entry, training_config(**settings), None if start_from is None else str(start_from))
    except UsageError as error:
        raise UsageError(f"recipe {path}: task {task}: {error}") from None


def _order(path: Path, tasks: dict[str, TaskRecipe]) -> list[str]:
    ordered: dict[str, None] = {}
    for task in tasks:
        ordered |= dict.fromkeys(reversed(_ancestry(path, tasks, task)))
    return list(ordered)


def _ancestry(path: Path, tasks: dict[str, TaskRecipe], task: str) -> list[str]:
    """Return the task, the task that it starts from, the task that this one starts from, and so on."""
    line = [task]
    while (start := tasks[line[-1]].start_from) is not None:
        if start not in tasks:
            raise UsageError(
                f"recipe {path}: task {line[-1]}: start_from {start!r} is not a task of the recipe, which has "
                f"{', '.join(tasks)}"
            )
        if start in line:
            raise UsageError(f"recipe {path}: these tasks start from one another in a circle: {', '.join(line)}")
        line.append(start)
    return line
