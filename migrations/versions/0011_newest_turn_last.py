"""Turns with their newest version last in the index."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE loracomp.turn DROP CONSTRAINT a_submitter_has_one_turn_a_base_model")
    op.execute(
        "ALTER TABLE loracomp.turn ADD CONSTRAINT a_submitter_has_one_turn_at_a_time"
        " PRIMARY KEY (base_model, submitted_by, served_at)"
    )


def downgrade() -> None:
    op.execute(
        "DELETE FROM loracomp.turn AS t USING loracomp.turn AS n WHERE n.base_model = t.base_model"
        " AND n.submitted_by = t.submitted_by AND n.served_at > t.served_at"
    )
    op.execute("ALTER TABLE loracomp.turn DROP CONSTRAINT a_submitter_has_one_turn_at_a_time")
    op.execute(
        "ALTER TABLE loracomp.turn ADD CONSTRAINT a_submitter_has_one_turn_a_base_model"
        " PRIMARY KEY (base_model, submitted_by)"
    )
