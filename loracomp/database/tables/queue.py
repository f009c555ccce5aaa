"""Limits of the queue, counters, and watched jobs that have ended."""

from sqlalchemy import BigInteger, SmallInteger, Table

from loracomp.database.tables.columns import (
    APPENDED_TO,
    THIS_TRANSACTION,
    also,
    check,
    counter,
    index,
    metadata,
    optional,
    required,
)

rescued_jobs = counter("rescued_jobs", "Counter: jobs that were queued again after their lease expired.")
refused_inserts = counter(
    "refused_inserts", "Counter: INSERT statements refused because a limit of the queue was reached."
)

queue_limit = Table(
    "queue_limit",
    metadata,
    required("id", SmallInteger, "Always 1.", primary_key=True, autoincrement=False, default="1"),
    optional("per_submitter", BigInteger, "Maximum number of waiting jobs of one submitter; null: no limit."),
    check("there_is_one_row_of_queue_limits", "id = 1"),
    check("per_submitter_must_be_between_1_and_1000000000", "per_submitter BETWEEN 1 AND 1000000000"),
    comment="How many jobs may wait. set_queue_limits changes it; jobs of administrators are not limited.",
)
also("INSERT INTO loracomp.queue_limit DEFAULT VALUES")

ended_job = Table(
    "ended_job",
    metadata,
    required("job_id", BigInteger, "A watched job that has ended, or was queued again.", autoincrement=False),
    required(
        "written_in", BigInteger, "Transaction in which the job ended or was queued again.", default=THIS_TRANSACTION
    ),
    index("ended_job_order", "written_in"),
    comment="Watched jobs that have ended. A trigger on job inserts the rows, and take_answers deletes them.",
    postgresql_with=APPENDED_TO,
)
