"""Defines the tables of schema loracomp in SQLAlchemy Core, a module for each topic.

Applications may import this package to insert jobs and read predictions.

Migration 0001 makes the tables as they are described here, until 1.0 is tagged. Tests prove that the migrations lead to
these tables: `alembic check`, and a comparison of constraints and indexes, which alembic does not see.
Constraint names read as sentences, because users see them in error messages.
"""

# All modules are imported, so that `metadata` has every table.
from loracomp.database.tables import audit, declarations, measurements, queue, registry, reports, workers
from loracomp.database.tables.columns import DIMENSIONS, SCHEMA, RoleName, metadata
from loracomp.database.tables.installed import sql_object
from loracomp.database.tables.jobs import job
from loracomp.database.tables.policies import policy
from loracomp.database.tables.predictions import prediction

__all__ = ["DIMENSIONS", "SCHEMA", "RoleName", "job", "metadata", "policy", "prediction", "sql_object"]
__all__ += ["audit", "declarations", "measurements", "queue", "registry", "reports", "workers"]
