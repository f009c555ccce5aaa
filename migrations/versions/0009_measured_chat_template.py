"""A measurement says whether the prompt was in the chat template, so that a changed policy measures again.

Also mends the comment on job.claimed_together, which counts the jobs of earlier claims too.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "measurement",
        sa.Column(
            "chat_template",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether the prompt stood in the base model's chat template.",
        ),
        schema="loracomp",
    )
    # What the default policy did until now.
    op.execute(
        "UPDATE loracomp.measurement AS m SET chat_template = true FROM loracomp.example AS e, loracomp.base_model AS b"
        " WHERE e.id = m.example_id AND e.choices IS NULL AND b.id = m.base_model_id AND b.has_chat_template"
    )
    op.execute(
        "COMMENT ON COLUMN loracomp.job.claimed_together IS 'Number of jobs that its worker held after the claim, from"
        " earlier claims too. If 1, it is alone: an expired lease then counts as an attempt.'"
    )


def downgrade() -> None:
    op.drop_column("measurement", "chat_template", schema="loracomp")
