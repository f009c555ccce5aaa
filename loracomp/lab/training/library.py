"""Train the adapters of a whole library by a recipe: resumable, and one task's failure is that task's alone."""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loracomp.errors import LoracompError, NotFoundError
from loracomp.lab.training.recipe import TaskRecipe
from loracomp.lab.training.train import RECORD, train_adapter
from loracomp.model.loading import BaseModel
from loracomp.registry.library_files import adapter_folder


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What became of a task."""

    task: str
    outcome: str
    """trained, finished (before this call) or failed."""
    record: Mapping[str, Any] | None = None
    """Its training record, where there is an adapter."""
    error: str | None = None
    """Why it failed."""


def train_library(
    recipe: Mapping[str, TaskRecipe], library: Path, data: Path, load_base: Callable[[], BaseModel]
) -> Iterator[TaskOutcome]:
    """Train each adapter of a recipe that `library`/adapters/TASK lacks, one after another; an outcome a task.

    `data` is a folder with a folder of JSON lines for each task. `load_base` gives a fresh base model, which a training
    uses up. Called again, it goes on where it was. A task that starts from one that failed fails too.
    Raises NotFoundError where `data` lacks the folder of a task.
    """
    if missing := [task for task in recipe if not (data / task).is_dir()]:
        raise NotFoundError(f"data {data} has no folder {', '.join(missing)}: a library's data is a folder a task")
    outcomes: dict[str, TaskOutcome] = {}
    fresh = _Fresh(load_base)
    for task, each in recipe.items():
        start = outcomes.get(each.start_from or "")
        if start and start.outcome == "failed":
            outcomes[task] = TaskOutcome(task, "failed", error=f"it starts from {start.task}, which failed")
        else:
            outcomes[task] = _train(each, library, data / task, fresh)
        yield outcomes[task]


class _Fresh:
    """A base model that no training has used yet."""

    def __init__(self, load: Callable[[], BaseModel]) -> None:
        self._load = load
        self._base: BaseModel | None = None

    def get(self) -> BaseModel:
        if self._base is None:
            self._base = self._load()
        return self._base

    def used_up(self) -> None:
        self._base = None
        gc.collect()  # PEFT's wrapping and the trainer hold one another


def _train(each: TaskRecipe, library: Path, data: Path, fresh: _Fresh) -> TaskOutcome:
    output = adapter_folder(library, each.task)
    start = adapter_folder(library, each.start_from) if each.start_from else None
    finished = (output / RECORD).is_file()
    try:
        record = train_adapter(each.entry, fresh.get(), each.config, output, str(data), start_from=start)
    except LoracompError as error:
        return TaskOutcome(each.task, "failed", error=str(error))
    except Exception as error:  # hours of other tasks' training shouldn't wait for somebody to look
        traceback.print_exc()
        return TaskOutcome(each.task, "failed", error=f"{type(error).__name__}: {error}")
    finally:
        if not finished:
            fresh.used_up()
    return TaskOutcome(each.task, "finished" if finished else "trained", record)
