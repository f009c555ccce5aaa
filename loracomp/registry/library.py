"""Loads a library (a folder with adapters and embedded examples) into the database."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loracomp.config import Settings
from loracomp.database.connections import Connection, rows_of, url_of
from loracomp.database.queries import QUERIES
from loracomp.errors import RefusedError
from loracomp.model.encoder import INPUT_FORMAT_VERSION, load_encoder
from loracomp.model.loading import describe_base_model
from loracomp.records import KnownBaseModel
from loracomp.registry import library_files as files
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import WEIGHTS
from loracomp.registry.adapter_store import store_adapter
from loracomp.registry.adapters import activate_adapter
from loracomp.registry.base_models import find_base_model, register_base_model
from loracomp.registry.embeddings import EncoderKey, Vectors, check_encoder, load_embeddings
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.library_files import BaseModelPart, EmbeddedExamples, EncoderPart, packaged
from loracomp.registry.measurement_files import measurements_path, read_measurements
from loracomp.registry.measurements import add_measurements
from loracomp.registry.tasks import add_rows, add_task


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """The changes that loading a library made for one task."""

    task: str
    adapter: str
    """added (and active now), unchanged, or missing (the library has no adapter for this task)."""
    examples_added: int
    embeddings_added: int
    measured: int
    """Number of examples for which gains of adapters were added."""


def load_library(connection: Connection, folder: Path | None = None, *, settings: Settings) -> list[LoadedTask]:
    """Load a library's tasks, adapters, examples and measurements into the database, and activate its adapters.

    Without a folder, it loads the shipped library. Loading a library again changes nothing. If the database lacks the
    library's base model or has no encoder, it is registered from the source that the library names. An existing task
    keeps its settings, and an adapter that somebody has retired stays retired. Of the settings it uses only the folder
    of downloaded models; the database is that of the connection. Raises RefusedError if the database has
    another encoder than the library, if a source doesn't provide the weights that the library was made for, or if a
    link leads out of the folder.
    """
    if folder is None:
        folder = packaged()
    else:
        files.check_links(folder)
    manifest = files.read_manifest(folder)
    base_model = _registered_base_model(connection, manifest.base_model, settings)
    encoder = _ensure_encoder(connection, manifest.encoder)
    examples = {task: files.read_examples_file(folder, task) for task in manifest.tasks}
    for task, examples_of_task in examples.items():
        _check_made_with(task, examples_of_task, manifest.encoder)
    base, known = find_base_model(connection, base_model), _known_adapters(connection, base_model)
    counts, rows, vectors = [], [], []
    for task, part in manifest.tasks.items():
        add_task(connection, task, family=part.family, description=part.description)
        added = _add_examples(connection, task, examples[task])
        new_rows, new_vectors = _without_embedding(connection, task, examples[task])
        rows += new_rows
        vectors.append(new_vectors)
        counts.append((task, added, len(new_rows)))
    together = np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)
    load_embeddings(connection, rows, together, encoder)
    # Activate adapters last, when their examples can be retrieved and their gains are known. Do it in one transaction,
    # so that no adapter stays staged if the process is killed.
    with connection.transaction():
        staged = {
            task: _stage_adapter(connection, files.adapter_folder(folder, task), task, base, known)
            for task in manifest.tasks
        }
        measured = {task: _load_measurements(connection, folder, task, base_model) for task in manifest.tasks}
        for _, adapter_id in staged.values():
            if adapter_id is not None:
                activate_adapter(connection, adapter_id)
    return [LoadedTask(task, staged[task][0], added, embedded, measured[task]) for task, added, embedded in counts]


def _registered_base_model(connection: Connection, part: BaseModelPart, settings: Settings) -> str:
    """The name of the library's base model in this database, found by fingerprint; registers it if it is missing."""
    for row in rows_of(connection, QUERIES["list_base_models"]):
        if row["fingerprint"] == part.fingerprint:
            return str(row["name"])
    model = describe_base_model(part.source, revision=part.revision, cache_dir=settings.home / "models")
    if model.fingerprint != part.fingerprint:
        raise RefusedError(
            f"the library is for base model {part.name} (fingerprint {part.fingerprint[:12]}), but {part.source} gives "
            f"{model.fingerprint[:12]} here: register the right weights with `loracomp model add`, then load it again"
        )
    register_base_model(connection, model)
    return model.name


def _ensure_encoder(connection: Connection, part: EncoderPart) -> EncoderKey:
    if part.input_version != INPUT_FORMAT_VERSION:
        raise RefusedError(
            f"the library's encoder has input version {part.input_version}, and this release has "
            f"{INPUT_FORMAT_VERSION}: build it again with `loracomp library build`"
        )
    if not rows_of(connection, QUERIES["show_encoder"]):
        set_encoder(url_of(connection), load_encoder(part.source, revision=part.revision))
    return check_encoder(connection, part)


def _check_made_with(task: str, examples: EmbeddedExamples, encoder: EncoderPart) -> None:
    made_with = (examples.encoder, examples.input_version, examples.embeddings.shape[1])
    if made_with != (encoder.fingerprint, encoder.input_version, encoder.dimensions):
        raise RefusedError(
            f"the library's examples of {task} were not embedded by its encoder {encoder.name}: "
            "build it again with `loracomp library build`"
        )


def _known_adapters(connection: Connection, base_model: str) -> set[tuple[str, str]]:
    rows = rows_of(connection, QUERIES["known_digests"], {"base_model": base_model})
    return {(row["task"], row["digest"]) for row in rows}


def _stage_adapter(
    connection: Connection, folder: Path, task: str, base: KnownBaseModel, known: set[tuple[str, str]]
) -> tuple[str, int | None]:
    """Return the outcome (`LoadedTask.adapter`), and the adapter's id if the adapter was added."""
    if not (folder / WEIGHTS).is_file():
        return "missing", None
    adapter = read_adapter(folder, base)
    if (task, adapter.digest) in known:
        return "unchanged", None
    return "added", store_adapter(connection, adapter, task=task, base=base).id


def _load_measurements(connection: Connection, folder: Path, task: str, base_model: str) -> int:
    measured = read_measurements(measurements_path(folder, task))
    return add_measurements(connection, task, base_model, measured) if measured else 0


def _add_examples(connection: Connection, task: str, examples: EmbeddedExamples) -> int:
    rows = [
        {
            "split": "train",
            "source_ref": source_ref,
            "content_hash": content_hash.tobytes().hex(),
            "hash_version": examples.hash_version,
        }
        for source_ref, content_hash in zip(examples.source_refs, examples.content_hashes, strict=True)
    ]
    outcomes = [row["outcome"] for row in add_rows(connection, task, rows)]
    return outcomes.count("added")


def _without_embedding(
    connection: Connection, task: str, examples: EmbeddedExamples
) -> tuple[list[dict[str, Any]], Vectors]:
    """Return the examples that have no embedding in the database, and the library's embeddings of them, in the same
    order."""
    numbers = {content_hash.tobytes(): number for number, content_hash in enumerate(examples.content_hashes)}
    rows = rows_of(connection, QUERIES["find_unembedded"], {"task": task, "content_hashes": list(numbers)})
    return rows, examples.embeddings[[numbers[row["content_hash"]] for row in rows]]
