"""Whether an adapter changes nothing, found out when it is staged, so that activating it can warn."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "adapter",
        sa.Column(
            "changes_nothing",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether A or B is zero in each of its modules, as before training. Activating it warns.",
        ),
        schema="loracomp",
    )


def downgrade() -> None:
    op.drop_column("adapter", "changes_nothing", schema="loracomp")
