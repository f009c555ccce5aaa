"""Defines the tables of schema loracomp in SQLAlchemy Core, a module for each topic.

Applications may import this package to insert jobs and read predictions.

Tests (`alembic check`, and a comparison of constraints and indexes) prove that the migrations produce these tables.
Constraint names read as sentences, because users see them in error messages.
"""

from loracomp.database.tables.audit import audit_event as audit_event
from loracomp.database.tables.columns import DIMENSIONS as DIMENSIONS
from loracomp.database.tables.columns import SCHEMA as SCHEMA
from loracomp.database.tables.columns import RoleName as RoleName
from loracomp.database.tables.columns import metadata as metadata
from loracomp.database.tables.declarations import answer_hint as answer_hint
from loracomp.database.tables.declarations import answer_row as answer_row
from loracomp.database.tables.declarations import declaration as declaration
from loracomp.database.tables.evaluations import evaluation as evaluation
from loracomp.database.tables.installed import sql_object as sql_object
from loracomp.database.tables.jobs import job as job
from loracomp.database.tables.measurements import measurement as measurement
from loracomp.database.tables.policies import policy as policy
from loracomp.database.tables.predictions import prediction as prediction
from loracomp.database.tables.queue import queue_limit as queue_limit
from loracomp.database.tables.registry import adapter as adapter
from loracomp.database.tables.registry import adapter_part as adapter_part
from loracomp.database.tables.registry import base_model as base_model
from loracomp.database.tables.registry import encoder as encoder
from loracomp.database.tables.registry import example as example
from loracomp.database.tables.registry import example_embedding as example_embedding
from loracomp.database.tables.registry import next_encoder as next_encoder
from loracomp.database.tables.registry import principal_axis as principal_axis
from loracomp.database.tables.registry import reduced_embedding as reduced_embedding
from loracomp.database.tables.registry import task as task
from loracomp.database.tables.reports import report_day as report_day
from loracomp.database.tables.reports import report_refresh as report_refresh
from loracomp.database.tables.reports import reported_tag as reported_tag
from loracomp.database.tables.workers import worker as worker
