"""Fence tokens are drawn, not counted: a worker could guess those of others."""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP SEQUENCE loracomp.lease_token")


def downgrade() -> None:
    op.execute("CREATE SEQUENCE loracomp.lease_token")
    op.execute("COMMENT ON SEQUENCE loracomp.lease_token IS 'Fence tokens of leases; they only grow.'")
