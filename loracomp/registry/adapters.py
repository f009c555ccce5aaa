"""Finds, compares, activates, retires and deletes adapters in the database."""

from typing import Any

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES


def activate_adapter(connection: Connection, adapter_id: int, *, force: bool = False) -> int | None:
    """Make an adapter the active one of its task and base model, in place of the one that was active.

    Returns the id of the adapter that it replaced and that is retired now, or None. Raises RefusedError if the new
    adapter scores worse than the replaced one on measured examples, unless `force`.
    """
    values = {"adapter_id": adapter_id, "force": force}
    replaced: int | None = row_of(connection, QUERIES["activate_adapter"], values)["replaced"]
    return replaced


def compare_adapter(connection: Connection, adapter_id: int) -> list[dict[str, Any]]:
    """What was measured of an adapter on its task: a row against the base model, and one against the active version.

    The second is missing if the adapter is the active one itself, and either if no example is measured under both. Each
    row has n (examples), accuracy and other_accuracy (None without choices), gain (mean difference in nats) and p (of
    the paired sign test of the gains).
    """
    return rows_of(connection, QUERIES["compare_adapters"], {"adapter_id": adapter_id})


def compare_with_base(connection: Connection, task: str, base_model: str) -> list[dict[str, Any]]:
    """A row as of `compare_adapter`, against the base model, for each adapter that was measured on the task.

    The task's own versions come first, and then the others, those that gain most first.
    """
    return rows_of(connection, QUERIES["compare_with_base"], {"task": task, "base_model": base_model})


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
    """The adapter's row, by 'name' (its newest version), 'name@version' or number. Raises NotFoundError."""
    return row_of(connection, QUERIES["find_adapter"], {"adapter": reference, "base_model": base_model})
