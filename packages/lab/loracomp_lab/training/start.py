"""Starts training from another task's adapter: intermediate-task training (Phang et al. 2018, arXiv 1811.01088)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load

from loracomp.errors import UsageError
from loracomp.model.loading import BaseModel
from loracomp.registry.adapter_checks import AdapterFile, read_adapter
from loracomp_lab.training.config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Start:
    """A checked adapter from which training starts."""

    weights: bytes
    """The bytes of its safetensors file."""
    lineage: dict[str, Any]
    """Its task, the sha256 of its weights, and tasks_seen, which lists all tasks that it was trained on, its own task
    last."""
    kept_aside: tuple[str, ...]
    """Hashes in hex of rows of these tasks that it was not trained on, because they were kept aside."""


def read_start(folder: Path, base: BaseModel, config: TrainingConfig) -> Start:
    """Read the adapter in `folder`, which `loracomp train` wrote.

    Raises RefusedError if the adapter is incomplete or was trained for another base model. Raises UsageError, which
    names the setting, if a setting differs from `config`, or if the training record doesn't say which tasks the adapter
    was trained on.
    """
    adapter = read_adapter(folder, base)
    _check_same_shape(folder, adapter, config)
    task, seen = adapter.training.get("task"), adapter.training.get("tasks_seen")
    if not task or not seen:
        raise UsageError(
            f"start_from {folder}: its training.json doesn't name the tasks that it was trained on (task, tasks_seen), "
            "which evaluations need in order to exclude it: train it again with this release"
        )
    lineage = {"task": task, "sha256": adapter.sha256, "tasks_seen": seen}
    return Start(adapter.weights, lineage, tuple(adapter.training.get("kept_aside") or ()))


def load_start(model: PeftModel, start: Start) -> None:
    """Copy the factors of `start` into the model's adapter. Raises UsageError if the two adapters change different
    modules."""
    factors = load(start.weights)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if different := sorted(factors.keys() ^ own.keys()):
        raise UsageError(
            f"start_from: the adapter of {start.lineage['task']} adapts other modules (such as {different[0]}): "
            "give the target_modules and layers that it was trained with"
        )
    with torch.no_grad():
        set_peft_model_state_dict(model, factors)


def _check_same_shape(folder: Path, adapter: AdapterFile, config: TrainingConfig) -> None:
    for name, has, wanted in (("rank", adapter.rank, config.rank), ("alpha", adapter.alpha, config.alpha)):
        if has != wanted:
            raise UsageError(f"start_from {folder}: its {name} is {has:g}, not {wanted:g}: give {name} {has:g}")
    if adapter.config["rank_pattern"] or adapter.config["alpha_pattern"]:
        raise UsageError(
            f"start_from {folder}: its modules differ in rank or alpha (rank_pattern, alpha_pattern); trainings here "
            "have one rank and one alpha for all"
        )
    if adapter.use_rslora:
        raise UsageError(f"start_from {folder}: it was trained with use_rslora, which trainings here don't use")
