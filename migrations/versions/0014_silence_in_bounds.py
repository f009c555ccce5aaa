"""A worker's word on its silence that views can reckon with; what each sequence is."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

NAME = "silent_after_s_must_be_between_0_and_86400"
COMMENTS = {
    "rescued_jobs": "Counter: jobs taken back after their lease ran out.",
    "refused_inserts": "Counter: INSERT statements refused because a limit of the queue was reached.",
    "queue_full_until": "Until when a full queue is not counted again, in milliseconds since 1970.",
}


def upgrade() -> None:
    # A worker that still runs reports again.
    op.execute("DELETE FROM loracomp.worker WHERE NOT silent_after_s BETWEEN 0 AND 86400")
    op.create_check_constraint(NAME, "worker", "silent_after_s BETWEEN 0 AND 86400", schema="loracomp")
    for sequence, comment in COMMENTS.items():
        op.execute(f"COMMENT ON SEQUENCE loracomp.{sequence} IS '{comment}'")


def downgrade() -> None:
    for sequence in COMMENTS:
        op.execute(f"COMMENT ON SEQUENCE loracomp.{sequence} IS NULL")
    op.drop_constraint(NAME, "worker", schema="loracomp", type_="check")
