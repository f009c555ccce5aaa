"""Who changed what, and when."""

from sqlalchemy import BigInteger, Column, Identity, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from loracomp.database.tables.columns import (
    TIME,
    RoleName,
    index,
    metadata,
    one_of,
    optional,
    partition,
    required,
)

audit_event = Table(
    "audit_event",
    metadata,
    Column(
        "id",
        BigInteger,
        Identity(always=True),
        nullable=False,
        comment="Number of the event; later events have higher numbers.",
    ),
    required("at", TIME, "When the change was made.", default="clock_timestamp()"),
    required("actor", RoleName(), "Role that made the change.", default="session_user"),
    required("entity", Text, "Table that changed, such as job or policy."),
    optional("entity_id", BigInteger, "Id of the changed row; null if it has none."),
    optional("entity_name", Text, "Name of the changed row; null if it has none."),
    required("action", Text, "What was done: insert, update or delete."),
    optional("old_status", Text, "Status before the change; only for jobs and adapters."),
    optional("new_status", Text, "Status after the change; only for jobs and adapters."),
    optional("attempt", Integer, "Number of the job's attempts after the change."),
    optional("worker", Text, "Worker that made the change."),
    optional("reason", Text, "Error code, or the reason that somebody gave for the change."),
    optional("before", JSONB, "The row before the change, without prompts."),
    optional("after", JSONB, "The row after the change, without prompts."),
    optional(
        "login",
        RoleName(),
        "Role that logged in, if the session had switched to another role (actor) with SET ROLE; otherwise null.",
        # Written exactly as Postgres prints it, because Alembic compares this default as text.
        server_default=text(
            "NULLIF(SESSION_USER, COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER))"
        ),
    ),
    one_of("action", "insert update delete", "action_must_be_insert_update_or_delete"),
    index("audit_event_of_job", "entity_id", "entity = 'job'"),
    index("audit_event_by_entity", "entity at", "entity <> 'job'"),
    comment="Audit log: who changed what, and when. Triggers write it; rows are never changed. Events of jobs are "
    "partitioned by ranges of job ids.",
    # Each partition has a primary key. The table can't have one, because it would have to contain the partition key.
    postgresql_partition_by="RANGE (entity, entity_id)",
)

_LIKE = "LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY"
_OF_JOBS = "loracomp_parts.audit_event_jobs"
partition(
    "audit_event_others",
    f"({_LIKE}, PRIMARY KEY (id))",
    "loracomp.audit_event",
    "DEFAULT",
    "Events of the registry.",
)
partition(
    "audit_event_jobs",
    f"({_LIKE}) PARTITION BY RANGE (entity_id)",
    "loracomp.audit_event",
    "FOR VALUES FROM ('job', 0) TO ('job', MAXVALUE)",
    "Events of jobs.",
)
partition(
    "audit_event_0",
    f"({_LIKE}, PRIMARY KEY (id))",
    _OF_JOBS,
    "FOR VALUES FROM (0) TO (1000000)",
    "Events of the jobs from 0 to 999999.",
)
partition(
    "audit_event_job_others",
    f"({_LIKE}, PRIMARY KEY (id))",
    _OF_JOBS,
    "DEFAULT",
    "Events of erased jobs, and of jobs that have no other partition.",
)
