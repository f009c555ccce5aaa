"""The policy 'measured' retrieves 100 examples: in a library only some of them are measured."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("UPDATE loracomp.policy SET k = 100 WHERE name = 'measured' AND k = 30")


def downgrade() -> None:
    op.execute("UPDATE loracomp.policy SET k = 30 WHERE name = 'measured' AND k = 100")
