"""Counters of the database: sequences, which nobody waits for and no rollback undoes."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COUNTERS = ("rescued_jobs", "refused_inserts")


def upgrade() -> None:
    for name in COUNTERS:
        op.execute(sa.schema.CreateSequence(sa.Sequence(name, schema="loracomp", minvalue=0, start=0)))
        # From now on each nextval counts one.
        op.execute(sa.text(f"SELECT nextval('loracomp.{name}')"))


def downgrade() -> None:
    for name in COUNTERS:
        op.execute(sa.schema.DropSequence(sa.Sequence(name, schema="loracomp")))
