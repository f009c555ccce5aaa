"""The transaction that queued a job, and turns with their newest version last in the index."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BACKGROUND = (
    "CREATE INDEX job_queue_in_the_background ON loracomp.job ({}) WHERE status = 'queued'::text"
    " AND (evaluation IS NOT NULL OR kind = 'measure'::text) AND NOT scheduled"
)


def upgrade() -> None:
    # Older jobs have null: every session sees them. The default is set afterwards, so that the table is not rewritten.
    op.execute("ALTER TABLE loracomp.job ADD COLUMN arrived xid8")
    op.execute("ALTER TABLE loracomp.job ALTER COLUMN arrived SET DEFAULT pg_current_xact_id()")
    # What submitters could find out by EXPLAIN, of jobs that they don't see.
    op.execute("ALTER TABLE loracomp.job ALTER COLUMN arrived SET STATISTICS 0")
    op.execute(
        "COMMENT ON COLUMN loracomp.job.arrived IS"
        " 'Transaction that queued the job or moved it in the queue; claims find new jobs by it.'"
    )
    op.execute(
        "CREATE INDEX job_arrived ON loracomp.job (base_model, arrived, submitted_by, due)"
        " WHERE status = 'queued'::text AND NOT scheduled"
    )
    op.execute("DROP INDEX loracomp.job_queue_in_the_background")
    op.execute(BACKGROUND.format("base_model, submitted_by, due, id"))
    op.execute("ALTER TABLE loracomp.turn DROP CONSTRAINT a_submitter_has_one_turn_a_base_model")
    op.execute(
        "ALTER TABLE loracomp.turn ADD CONSTRAINT a_submitter_has_one_turn_at_a_time"
        " PRIMARY KEY (base_model, submitted_by, served_at)"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE loracomp.turn DROP CONSTRAINT a_submitter_has_one_turn_at_a_time")
    op.execute(
        "ALTER TABLE loracomp.turn ADD CONSTRAINT a_submitter_has_one_turn_a_base_model"
        " PRIMARY KEY (base_model, submitted_by)"
    )
    op.execute("DROP INDEX loracomp.job_queue_in_the_background")
    op.execute(BACKGROUND.format("base_model, due, id"))
    op.execute("DROP INDEX loracomp.job_arrived")
    op.execute("ALTER TABLE loracomp.job DROP COLUMN arrived")
