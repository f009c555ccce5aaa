"""Defines the tables of schema loracomp in SQLAlchemy Core, a module for each topic.

Applications may import this package to insert jobs and read predictions.

Tests (`alembic check`, and a comparison of constraints and indexes) prove that the migrations produce these tables.
Constraint names read as sentences, because users see them in error messages.
"""

# All modules are imported, so that `metadata` has every table.
from loracomp.database.tables import audit, declarations, evaluations, measurements, queue, registry, reports, workers
from loracomp.database.tables.columns import DIMENSIONS, SCHEMA, RoleName, metadata
from loracomp.database.tables.installed import sql_object
from loracomp.database.tables.jobs import job
from loracomp.database.tables.policies import policy
from loracomp.database.tables.predictions import prediction

__all__ = ["DIMENSIONS", "SCHEMA", "RoleName", "job", "metadata", "policy", "prediction", "sql_object"]
__all__ += ["audit", "declarations", "evaluations", "measurements", "queue", "registry", "reports", "workers"]
