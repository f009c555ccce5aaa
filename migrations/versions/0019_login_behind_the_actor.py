"""An event names the login too: whoever sets a role that others share would else hide behind it."""

import sqlalchemy as sa
from alembic import op

from loracomp.database.tables import RoleName

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

DEFAULT = "NULLIF(SESSION_USER, COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER))"


def upgrade() -> None:
    comment = "Login behind it, where actor is a role that the session had set; null where they are the same."
    op.add_column("audit_event", sa.Column("login", RoleName(), nullable=True, comment=comment), schema="loracomp")
    # Apart, or events that are there would get the installer's.
    op.alter_column("audit_event", "login", server_default=sa.text(DEFAULT), schema="loracomp")


def downgrade() -> None:
    op.drop_column("audit_event", "login", schema="loracomp")
