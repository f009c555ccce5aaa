"""Jobs for later stand apart from those that are due: no claim walks through them, whatever their priority."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

INDEXES = {
    "job_queue": (["base_model", "submitted_by", "due", "id"], "status = 'queued'"),
    "job_queue_of_evaluations": (["base_model", "due", "id"], "status = 'queued' AND evaluation IS NOT NULL"),
}


def upgrade() -> None:
    op.add_column(
        "job",
        sa.Column(
            "scheduled",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether it waits for run_at; a claim ends that once the time has come. Filled by a trigger.",
        ),
        schema="loracomp",
    )
    op.execute("UPDATE loracomp.job SET scheduled = true WHERE status = 'queued' AND run_at > now()")
    for name, (columns, where) in INDEXES.items():
        op.drop_index(name, "job", schema="loracomp")
        op.create_index(name, "job", columns, schema="loracomp", postgresql_where=sa.text(f"{where} AND NOT scheduled"))
    op.create_index(
        "job_scheduled",
        "job",
        ["run_at"],
        schema="loracomp",
        postgresql_where=sa.text("status = 'queued' AND scheduled"),
    )


def downgrade() -> None:
    op.drop_index("job_scheduled", "job", schema="loracomp")
    for name, (columns, where) in INDEXES.items():
        op.drop_index(name, "job", schema="loracomp")
        op.create_index(name, "job", columns, schema="loracomp", postgresql_where=sa.text(where))
    op.drop_column("job", "scheduled", schema="loracomp")
