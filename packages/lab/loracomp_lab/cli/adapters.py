"""`loracomp adapter convert` and `loracomp adapter card`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from loracomp.cli.adapters import BaseModelName, Reference
from loracomp.cli.common import AsJson, emit, open_database, say_or_json
from loracomp.config import load_settings
from loracomp.registry.adapters import find_adapter
from loracomp.registry.base_models import find_base_model


def convert_adapter(
    folder: Annotated[Path, typer.Argument(help="PEFT folder of another kind: DoRA, modules_to_save, LoHa, ...")],
    output: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    *,
    rank: Annotated[
        int, typer.Option(min=1, max=512, help="Rank of the LoRA to write; a higher rank loses less.")
    ] = 16,
    base_model: BaseModelName = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept it even if its config names another base model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter that can't be staged to the nearest plain LoRA, and show the error of each module."""
    from loracomp.model.loading import load_base_model
    from loracomp_lab import convert

    with open_database() as connection:
        known = find_base_model(connection, base_model)
    base = load_base_model(
        known.source, revision=known.revision, dtype="float32", cache_dir=load_settings().home / "models"
    )
    report = convert.convert_adapter(folder, output, replace(base, name=known.name), rank, any_base=any_base)
    rows = [asdict(row) | {name: _short(getattr(row, name)) for name in ("norm", "relative_error")} for row in report]
    emit([rows[-1], *rows[:-1]], title="Converted", as_json=as_json)


def show_card(reference: Reference, base_model: BaseModelName = None, as_json: AsJson = False) -> None:
    """Print an adapter's card, made from its training record: data and licence, settings, rows, seed, scores."""
    from loracomp_lab.training.card import adapter_card

    with open_database() as connection:
        row = find_adapter(connection, reference, base_model)
    card = adapter_card(row["training"])
    say_or_json(card, {"name": row["name"], "version": row["version"], "card": card}, as_json)


def _short(number: float) -> float:
    """Return the number with four digits, because further digits would be rounding errors of float32."""
    return float(f"{number:.4g}")
