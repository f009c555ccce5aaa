"""Limits of the queue, and counters."""

from sqlalchemy import BigInteger, Sequence, SmallInteger, Table

from loracomp.database.tables.columns import SCHEMA, check, metadata, optional, required

# Sequences used as counters (their last value is the count): incrementing one takes no lock, and survives a rollback.
rescued_jobs = Sequence("rescued_jobs", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)
refused_inserts = Sequence("refused_inserts", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)

queue_limit = Table(
    "queue_limit",
    metadata,
    required("id", SmallInteger, "Always 1.", primary_key=True, autoincrement=False, default="1"),
    optional("per_submitter", BigInteger, "Most jobs of one submitter that may wait; null: no limit."),
    check("there_is_one_row_of_queue_limits", "id = 1"),
    check("per_submitter_must_be_between_1_and_1000000000", "per_submitter BETWEEN 1 AND 1000000000"),
    comment="How many jobs may wait. set_queue_limits changes it; jobs of administrators are not limited.",
)
