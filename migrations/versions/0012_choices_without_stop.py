"""Refuses jobs that give stop together with choices; until now their stop had no effect."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

NAME = "choices_are_scored_not_generated_leave_out_stop"


def upgrade() -> None:
    op.execute("UPDATE loracomp.job SET stop = '{}' WHERE choices IS NOT NULL AND stop <> '{}'")
    op.create_check_constraint(NAME, "job", "choices IS NULL OR stop = '{}'", schema="loracomp")


def downgrade() -> None:
    op.drop_constraint(NAME, "job", schema="loracomp")
