"""An index of the days of jobs' events, by which a week of attempts is found among years of them."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    day = sa.text("((at AT TIME ZONE 'UTC')::date)")
    of_jobs = sa.text("entity = 'job'")
    op.create_index(
        "audit_event_day", "audit_event", [day], schema="loracomp", postgresql_using="brin", postgresql_where=of_jobs
    )
    # Without knowing how many events a day has, the planner would not use the index. Of an empty table it would learn nothing.
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM loracomp.audit_event WHERE entity = 'job')")):
        op.execute("ANALYZE loracomp.audit_event")


def downgrade() -> None:
    op.drop_index("audit_event_day", "audit_event", schema="loracomp")
