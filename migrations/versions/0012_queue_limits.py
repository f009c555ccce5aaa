"""How many jobs may wait, in all and for each submitter; nothing is limited until somebody says so."""

import sqlalchemy as sa
from alembic import op

from loracomp.database.tables import RoleName

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

RANGE = "{} BETWEEN 1 AND 1000000000"


def upgrade() -> None:
    op.create_table(
        "queue_limit",
        sa.Column("id", sa.SmallInteger(), nullable=False, server_default=sa.text("1"), comment="Always 1."),
        sa.Column(
            "in_all", sa.BigInteger(), comment="Jobs that may wait, those of evaluations apart; null: any number."
        ),
        sa.Column("per_submitter", sa.BigInteger(), comment="Jobs of one submitter that may wait; null: any number."),
        sa.PrimaryKeyConstraint("id"),
        sa.CheckConstraint("id = 1", name="there_is_one_row_of_queue_limits"),
        sa.CheckConstraint(RANGE.format("in_all"), name="in_all_must_be_between_1_and_1000000000"),
        sa.CheckConstraint(RANGE.format("per_submitter"), name="per_submitter_must_be_between_1_and_1000000000"),
        schema="loracomp",
        comment="How many jobs may wait. set_queue_limits sets it; administrators' own jobs are not bound.",
    )
    op.execute("INSERT INTO loracomp.queue_limit DEFAULT VALUES")
    op.create_table(
        "queue_count",
        sa.Column("submitted_by", RoleName(), nullable=False, comment="Submitter; the empty name: all of them."),
        sa.Column("queued", sa.BigInteger(), nullable=False, comment="Jobs that waited when they were counted."),
        sa.Column(
            "last_id", sa.BigInteger(), nullable=False, comment="Newest job then: what came later has a higher id."
        ),
        sa.Column(
            "counted_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("clock_timestamp()"),
            comment="When that was.",
        ),
        sa.PrimaryKeyConstraint("submitted_by"),
        schema="loracomp",
        comment="What limits compare with, so that the queue is not counted with each INSERT.",
        postgresql_with={"fillfactor": "50"},
    )
    # Whoever notes a count locks this row.
    op.execute(
        "INSERT INTO loracomp.queue_count (submitted_by, queued, last_id, counted_at) VALUES ('', 0, 0, '-infinity')"
    )
    op.execute(sa.schema.CreateSequence(sa.Sequence("queue_full_until", schema="loracomp", minvalue=0, start=0)))


def downgrade() -> None:
    op.execute(sa.schema.DropSequence(sa.Sequence("queue_full_until", schema="loracomp")))
    op.drop_table("queue_count", schema="loracomp")
    op.drop_table("queue_limit", schema="loracomp")
