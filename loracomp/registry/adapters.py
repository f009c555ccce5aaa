"""Finds, activates, retires and deletes adapters in the database."""

from typing import Any

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import UsageError


def activate_adapter(connection: Connection, adapter_id: int, *, force: bool = False) -> int | None:
    """Make an adapter the active one of its task and base model, in place of the one that was active.

    Returns the id of the adapter that it replaced and that is retired now, or None. Raises RefusedError if the new
    adapter scores worse than the replaced one on measured examples, unless `force`.
    """
    values = {"adapter_id": adapter_id, "force": force}
    replaced: int | None = row_of(connection, QUERIES["activate_adapter"], values)["replaced"]
    return replaced


def retire_adapter(connection: Connection, adapter_id: int) -> None:
    """Take an adapter out of routing. It stays stored for replay, and can be activated again."""
    row_of(connection, QUERIES["retire_adapter"], {"adapter_id": adapter_id})


def delete_adapter(
    connection: Connection, reference: str, base_model: str | None = None, *, force: bool = False
) -> list[dict[str, Any]]:
    """Delete an adapter, by 'name' (its newest version) or 'name@version'; returns what was deleted and what was kept.

    Raises NotFoundError, and RefusedError if it is active or if a trace or a waiting job names it, unless `force`.
    """
    values = {"adapter": reference, "base_model": base_model, "force": force}
    return rows_of(connection, QUERIES["delete_adapter"], values)


def find_adapter(connection: Connection, reference: str, base_model: str | None = None) -> dict[str, Any]:
    """The adapter's row, by 'name' (its newest version) or 'name@version'. Raises NotFoundError or UsageError."""
    name, at, version = reference.rpartition("@")
    if at and not version.isdecimal():
        raise UsageError(f"adapter {reference!r}: write NAME, or NAME@VERSION with a number")
    values = {"name": name if at else reference, "version": int(version) if at else None, "base_model": base_model}
    return row_of(connection, QUERIES["find_adapter"], values)
