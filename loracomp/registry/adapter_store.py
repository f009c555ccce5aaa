"""Stores adapters in the database, and reads their factors from there."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

from psycopg.types.json import Jsonb

from loracomp.composition.strategies import LoraFactors
from loracomp.database.connections import Connection, row_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import JobError, RefusedError
from loracomp.model.sources import is_hub_id
from loracomp.records import KnownBaseModel
from loracomp.registry.adapter_checks import AdapterFile, read_adapter
from loracomp.registry.adapter_files import check_new, own_scaling, parse_factors, write_folder
from loracomp.registry.base_models import find_base_model

PART_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """An adapter that is stored in the registry."""

    id: int
    name: str
    version: int
    created: bool
    """False if the registry already had an adapter with the same digest."""


def stage_adapter(
    connection: Connection,
    folder: Path,
    *,
    task: str,
    base_model: str | None = None,
    name: str | None = None,
    any_base: bool = False,
) -> StagedAdapter:
    """Check a PEFT folder and store it as a new version of adapter `name` (default: the task's), in one transaction.

    If an adapter that computes the same is already stored, it is returned instead. Raises RefusedError if something is
    wrong with the folder (`adapter_checks.read_adapter`) or the name, and NotFoundError for an unknown task or base
    model.
    """
    base = find_base_model(connection, base_model)
    return store_adapter(connection, read_adapter(folder, base, any_base=any_base), task=task, base=base, name=name)


def store_adapter(
    connection: Connection, adapter: AdapterFile, *, task: str, base: KnownBaseModel, name: str | None = None
) -> StagedAdapter:
    """Store a checked adapter as `stage_adapter` does."""
    name = task if name is None else name
    with translated_errors(), connection.transaction():
        row = row_of(connection, QUERIES["stage_adapter"], _values(adapter, task, base, name))
        if row["created"]:
            copy_weights(connection, row["adapter_id"], adapter.weights)
    return StagedAdapter(row["adapter_id"], name, row["adapter_version"], row["created"])


def _values(adapter: AdapterFile, task: str, base: KnownBaseModel, name: str) -> dict[str, Any]:
    return asdict(adapter) | {
        "task": task,
        "base_model": base.name,
        "name": name,
        "scaling": adapter.scaling,
        "target_modules": list(adapter.target_modules),
        "byte_count": len(adapter.weights),
        "sha256": adapter.sha256,
        "digest": adapter.digest,
        "config": Jsonb(adapter.config),
        "training": Jsonb(adapter.training),
    }


def copy_weights(connection: Connection, adapter_id: int, weights: bytes) -> None:
    """Store the bytes of a new adapter's file, in parts."""
    statement = "COPY loracomp.adapter_part (adapter_id, part, bytes) FROM STDIN (FORMAT binary)"
    with connection.cursor().copy(statement) as copy:
        copy.set_types(["int4", "int4", "bytea"])
        for part, start in enumerate(range(0, len(weights), PART_BYTES)):
            copy.write_row((adapter_id, part, weights[start : start + PART_BYTES]))


def fetch_adapters(connection: Connection, adapter_ids: Sequence[int]) -> list[LoraFactors]:
    """Read adapters' factors from the database, in the order of `adapter_ids`, by one statement that streams the parts.

    Raises JobError 'adapter_hash_mismatch' if the bytes' sha256 is not the registered one, and 'adapter_missing' for an
    unknown id.
    """
    fetched = {adapter.id: adapter for adapter in _stream_adapters(connection, adapter_ids)}
    if missing := [id_ for id_ in adapter_ids if id_ not in fetched]:
        raise JobError(f"adapters {missing} are not in the registry", code="adapter_missing")
    return [fetched[id_] for id_ in adapter_ids]


def _stream_adapters(connection: Connection, adapter_ids: Sequence[int]) -> Iterator[LoraFactors]:
    values = {"adapter_ids": list(adapter_ids)}
    with connection.cursor() as cursor:
        stream = cursor.stream(QUERIES["read_adapters"], values, binary=True)
        # Close it even if a file is refused, because the connection can run no other statement while it is open.
        with closing(cast("Generator[dict[str, Any], None, None]", stream)) as parts:
            for _, group in groupby(parts, key=itemgetter("adapter_id")):
                rows = list(group)
                yield parse_adapter(rows[0], b"".join(row["bytes"] or b"" for row in rows))


def parse_adapter(row: dict[str, Any], weights: bytes) -> LoraFactors:
    """Parse a registered adapter's bytes; raises JobError unless their sha256 is the registered one."""
    if hashlib.sha256(weights).hexdigest() != row["sha256"]:
        raise JobError(
            f"adapter {row['name']}@{row['version']}: its bytes in the database are not those that were registered "
            "(sha256 differs); stage the adapter again from its folder and activate that version",
            code="adapter_hash_mismatch",
        )
    factors = parse_factors(weights)
    own = own_scaling(row["config"], factors)
    return LoraFactors(row["adapter_id"], row["sha256"], row["scaling"], factors, own)


def export_adapter(connection: Connection, adapter: dict[str, Any], folder: Path) -> None:
    """Write a registered adapter (a row of `find_adapter`) as a PEFT folder; its safetensors bytes are unchanged.

    The config names the registered base model, because the author's path need not exist elsewhere.

    Raises UsageError if the folder is not empty, and RefusedError if the bytes in the database have changed.
    """
    check_new(folder)
    with translated_errors():
        cursor = connection.cursor(binary=True)
        parts = cursor.execute(QUERIES["read_adapters"], {"adapter_ids": [adapter["id"]]}).fetchall()
    weights = b"".join(part["bytes"] or b"" for part in parts)
    try:
        parse_adapter(parts[0], weights)
    except JobError as error:
        raise RefusedError(str(error)) from error
    write_folder(folder, adapter["config"] | _base_of(adapter), adapter["training"], weights)


def _base_of(adapter: dict[str, Any]) -> dict[str, str | None]:
    """The name of the base model for the config: its hub id, which PEFT can load anywhere, or else its name in this
    database."""
    if is_hub_id(adapter["base_source"]):
        return {"base_model_name_or_path": adapter["base_source"], "revision": adapter["base_revision"]}
    return {"base_model_name_or_path": adapter["base_model"], "revision": None}
