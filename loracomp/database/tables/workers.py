"""Workers, their last reports, and the worker that keeps house."""

from sqlalchemy import Double, Integer, SmallInteger, Table, Text

from loracomp.database.tables.columns import (
    TIME,
    RoleName,
    at_most_characters,
    check,
    count,
    metadata,
    one_of,
    optional,
    required,
    short_name,
)

worker = Table(
    "worker",
    metadata,
    required("name", Text, "Name of the worker, also in leases and predictions.", primary_key=True),
    required(
        "status",
        Text,
        "Last reported status: idle, busy, stopping or stopped. The view worker_status shows who is gone.",
    ),
    required("host", Text, "Machine that the worker runs on."),
    required("pid", Integer, "Process id of the worker on its host."),
    required("code_version", Text, "Version of loracomp that the worker runs."),
    required("base_model", Text, "Base model that the worker serves."),
    required("device", Text, "Device and data type of the base model, such as cpu/bfloat16."),
    required("login", RoleName(), "Database role that the worker logged in as.", default="session_user"),
    required("started_at", TIME, "When the worker started, by the database's clock.", default="now()"),
    required("seen_at", TIME, "When the worker last reported.", default="now()"),
    optional("looked_at", TIME, "When the worker last asked for jobs; null if never."),
    required("silent_after_s", Double, "Seconds without a report after which the worker counts as gone."),
    count("claimed", "Number of jobs that the worker claimed since it started."),
    count("succeeded", "Number of jobs that the worker answered."),
    count("failed", "Number of failures that the worker recorded, including attempts that are retried."),
    count("released", "Number of jobs that the worker gave back without counting the attempt."),
    count("dropped", "Number of results that came too late, after the lease was lost, and were not recorded."),
    one_of("status", "idle busy stopping stopped", "worker_status_must_be_a_known_one"),
    *(at_most_characters(column, 300) for column in ("name", "host", "code_version", "device")),
    short_name("base_model", "base_model"),
    check("counts_must_not_be_negative", "least(claimed, succeeded, failed, released, dropped) >= 0"),
    # Views subtract this value from a timestamp, and a value too large for an interval would make the views fail for
    # everybody.
    check("silent_after_s_must_be_between_0_and_86400", "silent_after_s BETWEEN 0 AND 86400"),
    comment="Workers and their last reports. The view worker_status shows who is alive.",
    # The table has few rows, which are updated every few seconds. Half-empty pages keep all versions of a row on one
    # page.
    postgresql_with={"fillfactor": "50"},
)

keeper = Table(
    "keeper",
    metadata,
    required("id", SmallInteger, "Always 1.", primary_key=True, autoincrement=False, default="1"),
    required("worker", Text, "Worker that keeps house, or was the last to do so."),
    required("keeps_until", TIME, "When another worker may take over, unless this worker renews its election before."),
    optional(
        "unattended_since",
        TIME,
        "When the latest outage began, in which nobody kept house because no worker reached the database.",
    ),
    optional("grace_until", TIME, "Until then rescue_jobs leaves the leases that ended after unattended_since."),
    check("there_is_one_keeper", "id = 1"),
    at_most_characters("worker", 300),
    comment="The worker that keeps house for all workers: it makes scheduled jobs due, rescues jobs whose lease has "
    "expired, and inserts jobs for rows of declared tables.",
    postgresql_with={"fillfactor": "50"},
)

keeper_step = Table(
    "keeper_step",
    metadata,
    required("step", Text, "SQL function that the keeper calls.", primary_key=True),
    required("worker", Text, "Worker that called the function."),
    required(
        "ran_at", TIME, "When the step last ran. If a step finds nothing to do, this is updated only every ten seconds."
    ),
    required("took_s", Double, "Seconds that the step took."),
    required("handled", Integer, "How many jobs, declarations or answers the step handled."),
    optional("error", Text, "Why the step failed; null if it succeeded."),
    check("took_s_must_be_between_0_and_1000000", "took_s BETWEEN 0 AND 1000000"),
    check(
        "step_must_be_one_of_the_keepers",
        "step IN ('rescue_jobs', 'wake_jobs', 'ask_rows', 'take_answers', 'measure_corrections', 'make_partitions')",
    ),
    at_most_characters("worker", 300),
    at_most_characters("error", 1000),
    comment="What each step of the keeper did last.",
    postgresql_with={"fillfactor": "50"},
)
