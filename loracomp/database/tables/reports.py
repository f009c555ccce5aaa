"""What reports read in addition to the jobs: tags that may be seen, sums over purged jobs, ages of views."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    Double,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from loracomp.database.tables.columns import RoleName, metadata, optional, required

reported_tag = Table(
    "reported_tag",
    metadata,
    required("key", Text, "Key of a tag whose values analysts may see.", primary_key=True),
    CheckConstraint("NOT loracomp.is_blank(key)", name="reported_tag_must_not_be_blank"),
    CheckConstraint("char_length(key) <= 100", name="reported_tag_must_be_at_most_100_characters"),
    comment="Keys of the tags that views of schema bi show. set_reported_tags changes them.",
)

purged_day = Table(
    "purged_day",
    metadata,
    required("day", Date, "Day in UTC on which the jobs ended."),
    required("submitted_by", RoleName(), "Database role that submitted the jobs."),
    required("policy", Text, "Name of the policy (settings of routing and merging)."),
    required("base_model", Text, "Base model that answered, or that the jobs asked for."),
    optional("evaluation", Text, "Evaluation that the jobs belong to; null for other jobs."),
    optional("own_task", Text, "Task of the examples that the jobs were made from; null if unknown."),
    required("jobs", BigInteger, "Number of jobs that ended on this day and were purged later."),
    required("succeeded", BigInteger, "Number of these jobs that succeeded."),
    required("failed", BigInteger, "Number of these jobs that failed."),
    required("attempts", BigInteger, "Number of attempts of these jobs."),
    required("prompt_tokens", BigInteger, "Tokens in the prompts of the jobs that succeeded."),
    required("output_tokens", BigInteger, "Tokens scored or generated for the jobs that succeeded."),
    required("compute_s", Double, "Seconds of computing: each batch's time, divided by its jobs."),
    required("asked", BigInteger, "Number of these jobs whose right answer is known."),
    required("n", BigInteger, "Number of jobs with a known right answer that succeeded."),
    required("correct", BigInteger, "Number of jobs whose answer was right."),
    UniqueConstraint(
        "day",
        "submitted_by",
        "policy",
        "base_model",
        "evaluation",
        "own_task",
        name="sums_of_purged_jobs_stand_once_a_day",
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint(
        "jobs > 0 AND succeeded >= 0 AND failed >= 0 AND succeeded + failed <= jobs",
        name="purged_jobs_must_add_up",
    ),
    CheckConstraint("correct >= 0 AND correct <= n AND n <= asked", name="purged_answers_must_add_up"),
    comment="Sums by day over purged jobs: how many, cost and accuracy. Reports add them to the jobs that remain.",
)

purged_tag = Table(
    "purged_tag",
    metadata,
    required("day", Date, "Day in UTC on which the jobs were answered."),
    required("tag", Text, "Key of a tag that analysts might see when the jobs were purged."),
    required("value", Text, "Value of the tag as text, cut to 200 characters."),
    required("label", Text, "The choice that was the answer; empty if the answer was generated text."),
    required("policy", Text, "Name of the policy (settings of routing and merging)."),
    required("base_model", Text, "Base model that answered."),
    required("n", BigInteger, "Number of answers whose jobs were purged."),
    required("asked", BigInteger, "Number of these answers whose right answer is known."),
    required("correct", BigInteger, "Number of these answers that were right."),
    PrimaryKeyConstraint("day", "tag", "value", "label", "policy", "base_model", name="purged_tag_pkey"),
    CheckConstraint("n > 0 AND correct >= 0 AND correct <= asked AND asked <= n", name="purged_labels_must_add_up"),
    comment="Number of purged jobs' answers by day, tag and answer. Reports add them to the jobs that remain.",
)

report_refresh = Table(
    "report_refresh",
    metadata,
    required("report", Text, "Name of a materialized view in schema loracomp.", primary_key=True),
    required(
        "refreshed_at",
        DateTime(timezone=True),
        "When the view was refreshed; it contains the data up to then.",
        server_default=text("now()"),
    ),
    optional(
        "seconds",
        Double,
        "Seconds that the last refresh took; null if the view was not refreshed since it was created.",
    ),
    comment="When each materialized view that reports read was last refreshed.",
)
