"""Who changed what, and when."""

from sqlalchemy import BigInteger, Column, Identity, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from loracomp.database.tables.columns import TIME, RoleName, index, metadata, one_of, optional, required

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
    optional("entity_id", BigInteger, "Id of the row; null if it has none."),
    optional("entity_name", Text, "Name of the row; null if it has none."),
    required("action", Text, "What was done: insert, update or delete."),
    optional("old_status", Text, "Status before the change; only for jobs and adapters."),
    optional("new_status", Text, "Status after the change; only for jobs and adapters."),
    optional("attempt", Integer, "Number of the job's attempts after the change."),
    optional("worker", Text, "Worker that made the change."),
    optional("reason", Text, "Error code, or the reason that the operator gave."),
    optional("before", JSONB, "The row before the change, without prompts."),
    optional("after", JSONB, "The row after the change, without prompts."),
    optional(
        "login",
        RoleName(),
        "Role that logged in, if the session had switched to another role (actor) by SET ROLE; otherwise null.",
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
    # Each partition has a primary key. The table can't, because a key would have to contain the columns of its ranges.
    postgresql_partition_by="RANGE (entity, entity_id)",
)
