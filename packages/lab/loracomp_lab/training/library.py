"""Trains the adapters of a whole library by a recipe. It can be resumed; if one task fails, the others continue."""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loracomp.errors import LoracompError, NotFoundError
from loracomp.model.loading import BaseModel
from loracomp.registry.library_files import adapter_folder
from loracomp_lab.training.recipe import TaskRecipe
from loracomp_lab.training.source import library_source
from loracomp_lab.training.train import RECORD, train_adapter


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How the training of one task ended."""

    task: str
    outcome: str
    """'trained', 'finished' (before this call) or 'failed'."""
    record: Mapping[str, Any] | None = None
    """The adapter's training record, if there is an adapter."""
    error: str | None = None
    """The error, if the task failed."""


def train_library(
    recipe: Mapping[str, TaskRecipe], library: Path, data: Path, load_base: Callable[[], BaseModel]
) -> Iterator[TaskOutcome]:
    """Train the adapters of a recipe that are missing in `library`/adapters, one after another; yields each outcome.

    `data` is a folder with a folder of JSON lines for each task. `load_base` returns a fresh base model. A training run
    changes the model, so each run needs a fresh one. If this function is called again after an interruption, it
    continues the interrupted run. If a task fails, the tasks that start from its adapter fail too. Raises NotFoundError
    if `data` lacks the folder of a task.
    """
    needed = dict.fromkeys(name for each in recipe.values() for name in each.entry.entries)
    if missing := [name for name in needed if not (data / name).is_dir()]:
        raise NotFoundError(f"data {data} has no folder {', '.join(missing)}: it needs one folder for each task")
    outcomes: dict[str, TaskOutcome] = {}
    fresh = cache(load_base)  # can be used until a training run changes it
    for task, each in recipe.items():
        start = outcomes.get(each.start_from or "")
        if start and start.outcome == "failed":
            outcomes[task] = TaskOutcome(task, "failed", error=f"the task starts from {start.task}, which failed")
        else:
            outcomes[task] = _train(each, library, data, fresh)
        yield outcomes[task]


def _train(each: TaskRecipe, library: Path, data: Path, fresh: Any) -> TaskOutcome:
    output = adapter_folder(library, each.task)
    start = adapter_folder(library, each.start_from) if each.start_from else None
    finished = (output / RECORD).is_file()
    try:
        source = library_source(each.entry, data, each.config)
        record = train_adapter(source, fresh(), each.config, output, start_from=start)
    except LoracompError as error:
        return TaskOutcome(each.task, "failed", error=str(error))
    except Exception as error:  # go on with the other tasks, whose training takes hours
        traceback.print_exc()
        return TaskOutcome(each.task, "failed", error=f"{type(error).__name__}: {error}")
    finally:
        if not finished:
            fresh.cache_clear()
            gc.collect()  # PEFT's wrapper and the trainer refer to each other
    return TaskOutcome(each.task, "finished" if finished else "trained", record)
