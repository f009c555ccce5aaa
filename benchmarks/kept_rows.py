"""What benchmarks of accuracy share: the library's base model and adapters, and rows that an adapter has not seen."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from loracomp.config import load_settings
from loracomp.lab.catalogue import Entry, read_examples
from loracomp.lab.catalogue.leaks import find_leaks
from loracomp.lab.training.config import TrainingConfig
from loracomp.lab.training.rows import split_rows
from loracomp.model.loading import BaseModel, load_base_model
from loracomp.registry.adapter_files import TRAINING
from loracomp.registry.examples import Example
from loracomp.registry.library_files import PACKAGED, adapter_folder, read_manifest


def library_base() -> BaseModel:
    """The base model of the shipped library."""
    return load_base_model(read_manifest(PACKAGED).base_model.source, cache_dir=load_settings().home / "models")


def with_adapter(base: BaseModel, task: str) -> PeftModel:
    """The base model with a task's adapter in PEFT."""
    return PeftModel.from_pretrained(base.model, str(adapter_folder(PACKAGED, task))).eval()


def chosen_tasks(options: Namespace) -> Sequence[str]:
    """The tasks that the option --tasks names, or all of the library."""
    return options.tasks.split(",") if options.tasks else sorted(read_manifest(PACKAGED).tasks)


def settings_of(task: str) -> TrainingConfig:
    """The settings that a task's adapter was trained with."""
    return TrainingConfig(**json.loads((adapter_folder(PACKAGED, task) / TRAINING).read_text())["hyper_parameters"])


def kept_aside(entry: Entry, data: Path) -> list[Example]:
    """Train rows that the adapter of the entry's task was not trained on, and whose text is in no validation split."""
    folder = str(data / entry.task)
    leaks = find_leaks(entry, folder).source_refs
    read = read_examples(entry, "train", folder)
    return split_rows((row for row in read if row.source_ref not in leaks), settings_of(entry.task))[0]
