"""An index of the days of jobs' events, by which a week of attempts is found among years; words on times."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


COMMENTS = {
    "prediction.timings": (
        "Milliseconds that each step took for the job's whole batch: claim, encode, route, load (adapters to the device), "
        "ready (waiting for the model), compose, predict, record.",
        "Milliseconds that each step took for the job's whole batch: claim, encode, route, load (adapters to the device), "
        "compose, record; of the job: ready (waiting for the model), predict (from the model's first step until it was "
        "answered) and model (its share of the steps meanwhile).",
    ),
    "latency_by_day.step": (
        "queue: until a worker took the job; a step of the worker, such as predict, with the time of the job's whole "
        "batch; or total: from the time when the job could start to its answer.",
        "queue: until a worker took the job; total: from the time when the job could start to its answer; or a key of "
        "prediction.timings.",
    ),
    "jobs_by_day.compute_s": (
        "Seconds of computing for the jobs that were answered: each batch's time from encoding to prediction, divided by "
        "its jobs; without waiting.",
        "Seconds of computing for the jobs that were answered, without waiting: their shares of their batches' steps and "
        "of the model's time.",
    ),
}
"""By column: before and after."""
PARTITIONS = "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = CAST(:whole AS regclass)"


def upgrade() -> None:
    day = sa.text("((at AT TIME ZONE 'UTC')::date)")
    of_jobs = sa.text("entity = 'job'")
    op.create_index(
        "audit_event_day", "audit_event", [day], schema="loracomp", postgresql_using="brin", postgresql_where=of_jobs
    )
    # Without knowing how many events a day has, the planner would not use the index. Of an empty table it would learn nothing.
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM loracomp.audit_event WHERE entity = 'job')")):
        op.execute("ANALYZE loracomp.audit_event")
    comment_on(after=True)


def downgrade() -> None:
    comment_on(after=False)
    op.drop_index("audit_event_day", "audit_event", schema="loracomp")


def comment_on(*, after: bool) -> None:
    for place, comments in COMMENTS.items():
        table, column = place.split(".")
        op.alter_column(table, column, comment=comments[after], schema="loracomp")
        for partition in op.get_bind().scalars(sa.text(PARTITIONS), {"whole": f"loracomp.{table}"}):
            op.alter_column(partition, column, comment=comments[after], schema="loracomp_parts")
