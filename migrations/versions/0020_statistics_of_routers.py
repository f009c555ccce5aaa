"""Most predictions are routed by retrieval; without statistics the planner takes them for one in two hundred."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE STATISTICS loracomp.prediction_router ON (policy ->> 'router') FROM loracomp.prediction")


def downgrade() -> None:
    op.execute("DROP STATISTICS loracomp.prediction_router")
