"""Registers and finds base models."""

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES
from loracomp.records import BaseModelDescription, KnownBaseModel


def register_base_model(connection: Connection, model: BaseModelDescription, *, make_default: bool = False) -> int:
    """Register a base model under its name; returns its id. The first one becomes the default.

    Raises RefusedError if the name belongs to other weights, settings or another tokenizer.
    """
    values = vars(model) | {"modules": Jsonb(model.modules), "make_default": make_default}
    return int(row_of(connection, QUERIES["register_base_model"], values)["id"])


def find_base_model(connection: Connection, name: str | None = None) -> KnownBaseModel:
    """Return the registered base model with this name, or the default one if no name is given. Raises NotFoundError if
    there is none."""
    row = row_of(connection, QUERIES["find_base_model"], {"name": name})
    return KnownBaseModel(**row | {"modules": {module: tuple(shape) for module, shape in row["modules"].items()}})
