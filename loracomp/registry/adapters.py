"""Finds, compares, activates and retires adapters in the database."""

from typing import Any

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES


def activate_adapter(connection: Connection, adapter_id: int, *, force: bool = False) -> int | None:
    """Make an adapter the active one of its task and base model, in place of the one that was active.

    Returns the id of the adapter that it replaced, which is now retired, or None. Raises RefusedError if the new
    adapter scores worse than the replaced one on measured examples, unless `force`.
    """
    values = {"adapter_id": adapter_id, "force": force}
    replaced: int | None = row_of(connection, QUERIES["activate_adapter"], values)["replaced"]
    return replaced


def compare_adapter(connection: Connection, adapter_id: int) -> list[dict[str, Any]]:
    """Compare an adapter with others by its measurements on its task: one row against the base model, and one against
    the active version.

    The second row is missing if the adapter itself is active. Either row is missing if no example is measured under
    both. Each row has n (examples), accuracy and other_accuracy (None without choices), gain (mean difference in nats)
    and p (of the paired sign test of the gains).
    """
    return rows_of(connection, QUERIES["compare_adapters"], {"adapter_id": adapter_id})


def retire_adapter(connection: Connection, adapter_id: int) -> None:
    """Take an adapter out of routing. It stays stored for replay, and can be activated again."""
    row_of(connection, QUERIES["retire_adapter"], {"adapter_id": adapter_id})


def find_adapter(connection: Connection, reference: str, base_model: str | None = None) -> dict[str, Any]:
    """The adapter's row, by 'name' (its newest version), 'name@version' or number. Raises NotFoundError."""
    return row_of(connection, QUERIES["find_adapter"], {"adapter": reference, "base_model": base_model})
