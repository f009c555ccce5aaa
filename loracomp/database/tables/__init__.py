"""Defines the tables of schema loracomp in SQLAlchemy Core, a module for each topic.

Applications may import this package to insert jobs and read predictions.

Tests (`alembic check`, and a comparison of constraints and indexes) prove that the migrations produce these tables.
Constraint names read as sentences, because users see them in error messages.
"""

from loracomp.database.tables.audit import audit_event
from loracomp.database.tables.columns import DIMENSIONS, SCHEMA, RoleName, metadata
from loracomp.database.tables.evaluations import evaluation
from loracomp.database.tables.installed import sql_object
from loracomp.database.tables.jobs import job
from loracomp.database.tables.measurements import measurement
from loracomp.database.tables.policies import policy
from loracomp.database.tables.predictions import prediction
from loracomp.database.tables.queue import queue_count, queue_limit, turn
from loracomp.database.tables.registry import (
    adapter,
    adapter_part,
    base_model,
    encoder,
    example,
    example_embedding,
    task,
)
from loracomp.database.tables.reports import purged_day, purged_tag, report_refresh, reported_tag
from loracomp.database.tables.workers import worker

__all__ = [
    "DIMENSIONS",
    "SCHEMA",
    "RoleName",
    "adapter",
    "adapter_part",
    "audit_event",
    "base_model",
    "encoder",
    "evaluation",
    "example",
    "example_embedding",
    "job",
    "measurement",
    "metadata",
    "policy",
    "prediction",
    "purged_day",
    "purged_tag",
    "queue_count",
    "queue_limit",
    "report_refresh",
    "reported_tag",
    "sql_object",
    "task",
    "turn",
    "worker",
]
