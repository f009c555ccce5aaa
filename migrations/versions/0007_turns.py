"""Claims take turns among submitters; the job table is cleaned up early whatever its history."""

import sqlalchemy as sa
from alembic import op

from loracomp.database.tables import RoleName

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TURN = "When each submitter was last served: claims take turns."


def index_queue(*columns: str) -> None:
    op.drop_index("job_queue", "job", schema="loracomp")
    op.create_index("job_queue", "job", list(columns), schema="loracomp", postgresql_where=sa.text("status = 'queued'"))


def upgrade() -> None:
    index_queue("base_model", "submitted_by", "due", "id")
    op.execute(
        "ALTER TABLE loracomp.job SET (autovacuum_vacuum_scale_factor = 0.005, autovacuum_vacuum_threshold = 1000,"
        " autovacuum_vacuum_cost_delay = 0)"
    )
    op.create_table(
        "turn",
        sa.Column("base_model", sa.Text(), nullable=False, comment="Base model of the jobs."),
        sa.Column("submitted_by", RoleName(), nullable=False, comment="Who submitted them."),
        sa.Column(
            "served_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
            comment="When a claim last took the first of its jobs.",
        ),
        sa.PrimaryKeyConstraint("base_model", "submitted_by", name="a_submitter_has_one_turn_a_base_model"),
        sa.ForeignKeyConstraint(
            ["base_model"],
            ["loracomp.base_model.name"],
            name="turn_base_model_must_exist",
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
        schema="loracomp",
        comment=TURN,
        postgresql_with={"fillfactor": "20", "autovacuum_vacuum_cost_delay": "0"},
    )


def downgrade() -> None:
    op.drop_table("turn", schema="loracomp")
    op.execute("ALTER TABLE loracomp.job RESET (autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay)")
    op.execute("ALTER TABLE loracomp.job SET (autovacuum_vacuum_scale_factor = 0.02)")
    index_queue("base_model", "due", "id")
