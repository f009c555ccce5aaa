"""Reports by day, which stay when their jobs are purged; the days that they cover, and the tags that they show."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    Integer,
    Interval,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
)

from loracomp.database.tables.columns import TIME, also, check, metadata, optional, required, unique_with_nulls

reported_tag = Table(
    "reported_tag",
    metadata,
    required("key", Text, "Key of a tag whose values analysts may see.", primary_key=True),
    check("reported_tag_must_not_be_blank", "NOT loracomp.is_blank(key)"),
    check("reported_tag_must_be_at_most_100_characters", "char_length(key) <= 100"),
    comment="Keys of the tags that views of schema bi show. set_reported_tags changes them.",
)

report_refresh = Table(
    "report_refresh",
    metadata,
    required("id", SmallInteger, "Always 1.", primary_key=True, autoincrement=False, default="1"),
    required(
        "refreshed_at",
        TIME,
        "When the reports were last refreshed. They count the jobs that had ended by then.",
        default="'epoch'",
    ),
    optional("seconds", Double, "Seconds that the last refresh took; null if there was none."),
    check("there_is_one_row_of_report_refresh", "id = 1"),
    comment="When refresh_reports last computed the reports by day.",
)
also("INSERT INTO loracomp.report_refresh DEFAULT VALUES")

report_day = Table(
    "report_day",
    metadata,
    required("day", Date, "Day in UTC on which jobs ended.", primary_key=True),
    optional(
        "jobs",
        BigInteger,
        "Number of jobs from which the day's reports were computed; null if they must be computed again.",
    ),
    optional(
        "times",
        Interval,
        "Sum of the times of day at which these jobs ended, which shows whether they are still the same jobs.",
    ),
    required(
        "is_closed",
        Boolean,
        "Whether the day's reports are final, because purge_jobs has deleted jobs of this day or of a later one.",
        default="false",
    ),
    optional(
        "renames",
        BigInteger,
        "How often a policy, a base model or a task, except tasks of declarations, had been renamed or deleted when "
        "the reports were computed.",
    ),
    comment="Days for which reports were computed, and from which jobs.",
)


def a_day() -> Column[Any]:
    """The day of the jobs that a row sums up."""
    return required("day", Date, "Day in UTC on which the jobs ended.")


def policy() -> Column[Any]:
    """The policy of the jobs that a row sums up."""
    return required("policy", Text, "Name of the policy: the settings of routing and merging.")


def base_model(comment: str = "Base model that answered.") -> Column[Any]:
    """The base model of the jobs that a row sums up."""
    return required("base_model", Text, comment)


def of_answers() -> list[Column[Any]]:
    """Which answers a row sums up."""
    return [a_day(), policy(), base_model()]


accuracy_by_day = Table(
    "accuracy_by_day",
    metadata,
    a_day(),
    optional("own_task", Text, "Task of the examples that the jobs were made from; null if unknown."),
    required(
        "policy",
        Text,
        "Name of the policy: the settings of routing and merging. Controls such as base are policies too.",
    ),
    base_model(),
    required("n", BigInteger, "Number of answers to jobs whose right answer was known."),
    required("correct", BigInteger, "Number of answers that equal the expected answer exactly."),
    unique_with_nulls("accuracy_by_day_key", "day own_task policy base_model"),
    comment="How often answers were right, by day and task. Task names are not masked.",
)

routing_by_day = Table(
    "routing_by_day",
    metadata,
    *of_answers(),
    required("task", Text, "Task of at least one retrieved example."),
    required(
        "jobs_first",
        BigInteger,
        "Number of answers for which this task was the most probable one; the sum over all tasks is the number of "
        "answers.",
    ),
    optional("mass", Double, "Sum of this task's probabilities over the answers."),
    optional(
        "entropy",
        Double,
        "Sum over the answers of -p log2 p, where p is this task's probability. Summed over all tasks, it is the "
        "sum of the answers' entropies in bits.",
    ),
    PrimaryKeyConstraint("day", "policy", "base_model", "task", name="routing_by_day_pkey"),
    comment="Sums of the tasks' probabilities over the jobs of a day, for bi.routing_drift.",
)

adapter_usage_by_day = Table(
    "adapter_usage_by_day",
    metadata,
    *of_answers(),
    required("adapter_id", Integer, "Id of the adapter."),
    optional(
        "task", Text, "Task that the adapter was trained for, under the name that it had when the jobs were answered."
    ),
    required("jobs", BigInteger, "Number of answers in which the adapter was used."),
    optional("weight", Double, "Sum of the adapter's weights over the answers."),
    PrimaryKeyConstraint("day", "policy", "base_model", "adapter_id", name="adapter_usage_by_day_pkey"),
    comment="Sums over the answers of a day in which an adapter was used.",
)

latency_by_day = Table(
    "latency_by_day",
    metadata,
    a_day(),
    base_model(),
    required(
        "step",
        Text,
        "queue: the time until a worker claimed the job; total: from the time when the job could start to its "
        "answer; or a key of prediction.timings.",
    ),
    required("n", BigInteger, "Number of answers."),
    required("p50_ms", Double, "Median time in milliseconds."),
    required("p95_ms", Double, "95th percentile in milliseconds."),
    required("p99_ms", Double, "99th percentile in milliseconds."),
    PrimaryKeyConstraint("day", "base_model", "step", name="latency_by_day_pkey"),
    comment="How long each step took for the jobs answered on a day.",
)

jobs_by_day = Table(
    "jobs_by_day",
    metadata,
    a_day(),
    required("submitted_by", Text, "Database role that submitted the jobs."),
    policy(),
    base_model("Base model that the jobs were for."),
    required("has_expected", Boolean, "Whether the jobs' right answers were known: such jobs test policies."),
    required("kind", Text, "Kind of the jobs: predict, route or measure."),
    required("status", Text, "How the jobs ended: succeeded, failed or cancelled."),
    optional(
        "reason", Text, "Short name of the error that ended the jobs; null if there was no error, or if it is unknown."
    ),
    required("jobs", BigInteger, "Number of jobs that ended."),
    required("prompt_tokens", BigInteger, "Tokens in the prompts of the jobs that were answered."),
    required("output_tokens", BigInteger, "Tokens that were scored or generated for the jobs that were answered."),
    required(
        "compute_s",
        Double,
        "Seconds of computing for the jobs that were answered, not counting waits: their shares of their "
        "batches' steps and of the model's time.",
    ),
    required("routed", BigInteger, "Number of answers that were routed by retrieval."),
    required("fell_back", BigInteger, "Number of these for which no adapter was used: the base model answered alone."),
    unique_with_nulls("jobs_by_day_key", "day submitted_by policy base_model has_expected kind status reason"),
    comment="Number of ended jobs and what they cost, by day and by how they ended.",
)

answers_by_tag = Table(
    "answers_by_tag",
    metadata,
    a_day(),
    required("tag", Text, "Key of the tag."),
    required("value", Text, "Value of the tag as text, cut to 200 characters."),
    required("choice", Text, "The choice that was the answer; empty if the answer was generated text."),
    policy(),
    base_model(),
    required(
        "n",
        BigInteger,
        "Number of answers with this tag, value, choice, policy and base model on this day.",
    ),
    required("asked", BigInteger, "Number of the answers (n) whose right answer is known."),
    required("correct", BigInteger, "Number of the answers (n) that equal the expected answer exactly."),
    PrimaryKeyConstraint("day", "tag", "value", "choice", "policy", "base_model", name="answers_by_tag_pkey"),
    comment="Counts of answers by day, tag and choice.",
)
