"""When the reports that are refreshed were last worked out."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "report_refresh",
        sa.Column("report", sa.Text(), nullable=False, comment="Materialized view of loracomp."),
        sa.Column(
            "refreshed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="Up to when it counts.",
        ),
        sa.Column(
            "seconds",
            sa.Double(),
            comment="Seconds that its last refresh took; null where there was none since it was made.",
        ),
        sa.PrimaryKeyConstraint("report"),
        schema="loracomp",
        comment="When the materialized views that reports rest on were last worked out.",
    )


def downgrade() -> None:
    op.drop_table("report_refresh", schema="loracomp")
