"""Trains one adapter on a task's rows, with PEFT's LoRA, transformers' Trainer, and the scoring used in serving."""

import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, PrinterCallback, set_seed

from loracomp.errors import RefusedError, UsageError
from loracomp.model.loading import BaseModel, quiet_transformers
from loracomp.model.scoring import log_likelihoods, normalize
from loracomp_lab.catalogue import Phrased
from loracomp_lab.training.card import adapter_card
from loracomp_lab.training.config import TrainingConfig
from loracomp_lab.training.kept_aside import not_learnt
from loracomp_lab.training.rows import Rows, TrainingRow, choose_rows, training_order
from loracomp_lab.training.source import Source
from loracomp_lab.training.start import Start, load_start, read_start
from loracomp_lab.training.trainer import ChoiceTrainer, ProgressBar, arguments

RECORD = "training.json"
CHECKPOINTS = "checkpoints"
LIBRARIES = ("loracomp", "torch", "transformers", "peft", "accelerate")
SCORED_TOGETHER = 16
NORMALIZATIONS = {"acc": "none", "acc_norm": "characters", "acc_token": "tokens"}


def train_adapter(
    source: Source, base: BaseModel, config: TrainingConfig, output: Path, *, start_from: Path | None = None
) -> dict[str, Any]:
    """Train an adapter on the rows of `source` and write it to `output` as a PEFT folder; return its training record.

    Training starts from the adapter in the folder `start_from` (`training.start`), or else from new factors, which are
    the same for all adapters with the same seed and shape.

    The folder gets adapter_config.json, adapter_model.safetensors (bfloat16), a card, and training.json with the
    record: settings, data digest, rows and tasks seen, hashes of the rows kept aside, scores on these rows, versions,
    and the seconds of the last run. Factors are float32 during training, whatever the base model's dtype. If the
    process was killed, another call continues from the last checkpoint; if the training had finished, it only returns
    the record. Training changes `base`: load a fresh one for anything else. Raises UsageError if `output` contains
    another training run, if a row has no choices, or if `start_from` has other settings; RefusedError if the trained
    factors are not finite.
    """
    started = time.monotonic()
    start = read_start(start_from, base, config) if start_from else None
    rows = choose_rows(tuple(source.parts.values()), base, config, phrasings=source.phrasings)
    plan = _plan(source, base, config, rows) | _origin(source, start)
    if (done := _finished(output, plan)) is not None:
        return done
    set_seed(config.seed)
    model = with_factors(base, config)
    if start:
        load_start(model, start)
    _begin(output, plan)
    order = training_order(rows.epochs, config)
    trainer = _trainer(model, order, config, output, source.task)
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=_last_checkpoint(output))
    _check_finite(model, output)
    measured = {
        "rows_seen": len(order),
        "steps": trainer.state.global_step,
        "loss": next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
        "held_out": _held_out_scores(model, rows.held_out),
        "kept_aside": _kept_aside(source, rows, start),
        "seconds": round(time.monotonic() - started, 1),
        "device": str(base.model.device),
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    record = plan | measured
    _write(model, record, output)
    return record


def accuracies(model: PreTrainedModel, rows: Sequence[TrainingRow]) -> dict[str, float]:
    """Return the shares of rows whose right choice scores highest: lm-eval's acc (by log-likelihood) and acc_norm (per
    character)."""
    ordered = sorted(rows, key=lambda row: row.tokens)
    right = dict.fromkeys(NORMALIZATIONS, 0)
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(ordered), SCORED_TOGETHER):
            batch = ordered[start : start + SCORED_TOGETHER]
            for row, score in zip(batch, log_likelihoods(model, [row.question for row in batch]), strict=True):
                for name, normalization in NORMALIZATIONS.items():
                    right[name] += int(normalize(score, row.question, normalization).argmax()) == row.label
    return {name: round(count / len(rows), 4) for name, count in right.items()}


def _plan(source: Source, base: BaseModel, config: TrainingConfig, rows: Rows) -> dict[str, Any]:
    """Return the part of the record that is known before the first step. When training is resumed, this part must be
    the same."""
    return {
        "task": source.task,
        "family": source.family,
        "base_model": {"name": base.name, "source": base.source, "fingerprint": base.fingerprint},
        "hyper_parameters": config.model_dump(mode="json"),
        "data": {
            **source.about,
            "rows": len(rows.epochs[0]),
            "rows_too_long": rows.too_long,
            "digest": rows.digest(),
        },
    }


def _origin(source: Source, start: Start | None) -> dict[str, Any]:
    """Return the part of the record on the tasks that the adapter was ever trained on, and on the rows left out as
    leaks."""
    seen = start.lineage["tasks_seen"] if start else []
    return {
        "started_from": start.lineage if start else None,
        "tasks_seen": [task for task in dict.fromkeys((*seen, *source.parts)) if task != source.task] + [source.task],
        "leaks": {
            "rows_left_out": len(source.leaks.source_refs),
            "rows_sharing_a_text": source.leaks.sharing,
            "compared_with": list(source.leaks.compared_with),
        },
    }


def _kept_aside(source: Source, rows: Rows, start: Start | None) -> list[str]:
    """Return the hashes of the train rows that the adapter was not trained on, so that it may be measured on them."""
    before, seen = (start.kept_aside, start.lineage["tasks_seen"]) if start else ((), ())
    own = {task: {each.hex() for each in hashes} for task, hashes in zip(source.parts, rows.kept_aside, strict=True)}
    return not_learnt(own, {each.hex() for each in rows.drawn}, before, seen)


def _finished(output: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record if the training in this folder is finished, or else None. Raises UsageError if the folder
    contains another training."""
    for file in (output / RECORD, output / CHECKPOINTS / RECORD):
        if file.exists():
            found: dict[str, Any] = json.loads(file.read_text())
            _check_same(found, plan, output)
            if file.parent != output:
                return None
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
            return found
    return None


def _begin(output: Path, plan: dict[str, Any]) -> None:
    """Write the plan into the folder. Settings must have been checked before, because later calls must have the same
    plan."""
    (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    _write_json(output / CHECKPOINTS / RECORD, plan)


def _check_finite(model: PeftModel, output: Path) -> None:
    """Raise RefusedError if a trained factor is NaN or infinite, and remove the checkpoints, which may be so too.

    A loss of NaN or infinity makes factors so, too: its gradient does. Trainer hides such losses in its log.
    """
    factors = get_peft_model_state_dict(model, save_embedding_layers=False)
    if not all(bool(factor.isfinite().all()) for factor in factors.values()):
        shutil.rmtree(output / CHECKPOINTS)
        raise RefusedError(
            "the training went wrong: its factors are NaN or infinite, so nothing was written; give a smaller "
            "learning_rate, alpha, lm_weight or unlikelihood"
        )


def _check_same(found: dict[str, Any], plan: dict[str, Any], output: Path) -> None:
    # "leaks" need not be equal: leaking rows already change the digest of the rows, and the rest does not matter.
    different = [key for key in plan if key != "leaks" and found.get(key) != plan[key]]
    if different:
        # Other settings change the rows too, so name a difference in rows only if it is the only difference.
        telling = [key for key in different if key != "data"] or different
        named = [change for key in telling for change in _changes(key, found.get(key), plan[key])]
        raise UsageError(
            f"output {output}: contains another training ({'; '.join(named)}): "
            "name another folder, delete this one, or give the settings that it was started with"
        )


def _changes(name: str, before: Any, now: Any) -> list[str]:
    """Return sentences on how two values differ; for dicts, one sentence for each key that differs."""
    if not isinstance(now, dict) or not isinstance(before, dict):
        return [f"{name} was {before}, is {now}"]
    return [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]] or [name]


def _lora_config(base: BaseModel, config: TrainingConfig) -> LoraConfig:
    present = {name.rpartition(".")[2] for name in base.modules}
    if missing := [name for name in config.target_modules if name not in present]:
        raise UsageError(
            f"target_modules: {base.name} has no {', '.join(missing)}; it has {', '.join(sorted(present))}"
        )
    count = base.model.config.get_text_config().num_hidden_layers
    if missing_layers := [layer for layer in config.layers or () if not 0 <= layer < count]:
        raise UsageError(f"layers: {base.name} has no {missing_layers}; it has 0 to {count - 1}")
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=list(config.target_modules),
        layers_to_transform=list(config.layers) if config.layers else None,
        task_type="CAUSAL_LM",
    )


def with_factors(base: BaseModel, config: TrainingConfig) -> PeftModel:
    """Wrap the base model with new LoRA factors. Raises UsageError naming a module or layer that the model lacks."""
    with warnings.catch_warnings():
        # PEFT uses a name that transformers has deprecated.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(base.model, _lora_config(base, config))


def _trainer(
    model: PeftModel, order: Sequence[TrainingRow], config: TrainingConfig, output: Path, title: str
) -> ChoiceTrainer:
    trainer = ChoiceTrainer(
        config,
        model=model,
        args=arguments(config, len(order), output / CHECKPOINTS, model),
        train_dataset=order,
        callbacks=[ProgressBar(title)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _last_checkpoint(output: Path) -> str | None:
    """Return the newest complete checkpoint, which is one whose trainer_state.json is valid JSON, because this file is
    written last."""
    states = [state for state in (output / CHECKPOINTS).glob("checkpoint-*/trainer_state.json") if _is_json(state)]
    newest = max(states, key=lambda state: int(state.parent.name.rpartition("-")[2]), default=None)
    return str(newest.parent) if newest else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _held_out_scores(model: PeftModel, held_out: Mapping[Phrased, Sequence[TrainingRow]]) -> dict[str, Any]:
    """Return the accuracy of the base model and of the adapter on the rows kept aside, for each kind of phrasing."""
    scores = {str(kind): _scores(model, rows) for kind, rows in held_out.items()}
    return {"rows": len(held_out[Phrased.OWN]), **scores.pop(str(Phrased.OWN)), "phrased": scores}


def _scores(model: PeftModel, rows: Sequence[TrainingRow]) -> dict[str, Any]:
    if not rows:
        return {}
    with model.disable_adapter():
        base = accuracies(model, rows)
    return {"base": base, "adapter": accuracies(model, rows)}


def _write(model: PeftModel, record: dict[str, Any], output: Path) -> None:
    """Write the PEFT folder. The record is written last, so that a folder with a record is complete."""
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # PEFT stores a set, whose order differs in each process
    config.inference_mode = True
    config.base_model_name_or_path = record["base_model"]["source"]  # PEFT wrote a path on this machine
    config.save_pretrained(output)
    factors = {
        name: factor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, factor in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())
    }
    save_file(factors, output / "adapter_model.safetensors", metadata={"format": "pt"})
    (output / "README.md").write_text(adapter_card(record), encoding="utf-8")
    _write_json(output / RECORD, record)
    shutil.rmtree(output / CHECKPOINTS)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    unfinished.replace(path)  # atomic
