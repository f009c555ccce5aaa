"""Reports by day in tables that outlast their jobs, in place of materialized views and of sums over purged jobs.

The sums over purged jobs are merged with the jobs that are left of their days, and these days are closed. Their other
reports stay empty: they were not kept, and would count only the jobs that are left. Of the current day, sums over jobs that were purged by force are dropped, as
purge_jobs does from now on. A downgrade drops all reports of days whose jobs were purged.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# Columns are (name, type, comment, whether it may be null).
DAY = ("day", sa.Date(), "Day in UTC on which the jobs ended.", False)
BASE_MODEL = ("base_model", sa.Text(), "Base model that answered.", False)
POLICY = ("policy", sa.Text(), "Name of the policy: the settings of routing and merging.", False)
IS_EVALUATION = (
    "is_evaluation",
    sa.Boolean(),
    "Whether the jobs come from evaluations rather than from people.",
    False,
)
TABLES = (
    (
        "accuracy_by_day",
        "How often answers were right, by day and unmasked task.",
        (
            DAY,
            ("evaluation", sa.Text(), "Name of the evaluation; null for other jobs whose right answer is known.", True),
            ("own_task", sa.Text(), "Task of the examples that the jobs were made from; null if unknown.", True),
            (
                "policy",
                sa.Text(),
                "Name of the policy: the settings of routing and merging. Controls such as base are policies too.",
                False,
            ),
            BASE_MODEL,
            (
                "asked",
                sa.BigInteger(),
                "Number of jobs with a known right answer that ended; failed and cancelled jobs count too.",
                False,
            ),
            ("n", sa.BigInteger(), "Number of jobs that were answered.", False),
            ("correct", sa.BigInteger(), "Number of answers that equal the expected answer exactly.", False),
        ),
        sa.UniqueConstraint(
            "day",
            "evaluation",
            "own_task",
            "policy",
            "base_model",
            name="accuracy_by_day_key",
            postgresql_nulls_not_distinct=True,
        ),
    ),
    (
        "routing_by_day",
        "Sums of the tasks' probabilities over the jobs of a day, from which views of bi compute means.",
        (
            DAY,
            POLICY,
            BASE_MODEL,
            IS_EVALUATION,
            ("task", sa.Text(), "Task of at least one retrieved example.", False),
            (
                "jobs_first",
                sa.BigInteger(),
                "Number of answers for which this task was the most probable one; the sum over all tasks is the number of answers.",
                False,
            ),
            ("jobs_inside", sa.BigInteger(), "Number of answers in which this task had a weight above 0.", False),
            ("mass", sa.Double(), "Sum of this task's probabilities over the answers.", True),
            (
                "entropy",
                sa.Double(),
                "Sum over the answers of -p log2 p, p being this task's probability; over all tasks it is the sum of entropies in bits.",
                True,
            ),
        ),
        sa.PrimaryKeyConstraint("day", "policy", "base_model", "is_evaluation", "task", name="routing_by_day_pkey"),
    ),
    (
        "adapter_usage_by_day",
        "Sums over the answers of a day in which an adapter was used, from which views of bi compute shares.",
        (
            DAY,
            POLICY,
            BASE_MODEL,
            IS_EVALUATION,
            ("adapter_id", sa.Integer(), "Id of the adapter.", False),
            (
                "task",
                sa.Text(),
                "Task that the adapter was trained for, under the name that it had when the jobs were answered.",
                True,
            ),
            ("jobs", sa.BigInteger(), "Number of answers in which the adapter was used.", False),
            (
                "jobs_first",
                sa.BigInteger(),
                "Number of answers in which the adapter comes first; summed over adapters: the number of answers with adapters.",
                False,
            ),
            ("weight", sa.Double(), "Sum of the adapter's weights over the answers.", True),
        ),
        sa.PrimaryKeyConstraint(
            "day", "policy", "base_model", "is_evaluation", "adapter_id", name="adapter_usage_by_day_pkey"
        ),
    ),
    (
        "adapter_pair_by_day",
        "How often two adapters were used in the same answer, by day.",
        (
            DAY,
            POLICY,
            BASE_MODEL,
            IS_EVALUATION,
            ("adapter_a", sa.Integer(), "Id of the first adapter, which is the smaller id.", False),
            ("adapter_b", sa.Integer(), "Id of the second adapter.", False),
            ("jobs", sa.BigInteger(), "Number of answers in which both adapters were used.", False),
        ),
        sa.PrimaryKeyConstraint(
            "day", "policy", "base_model", "is_evaluation", "adapter_a", "adapter_b", name="adapter_pair_by_day_pkey"
        ),
    ),
    (
        "latency_by_day",
        "How long each step took for the jobs answered on a day.",
        (
            DAY,
            BASE_MODEL,
            IS_EVALUATION,
            (
                "step",
                sa.Text(),
                "queue: until a worker took the job; a step of the worker, such as predict, with the time of the job's whole batch; or total: from the time when the job could start to its answer.",
                False,
            ),
            ("n", sa.BigInteger(), "Number of answers.", False),
            ("mean_ms", sa.Double(), "Mean time in milliseconds.", False),
            ("p50_ms", sa.Double(), "Median time in milliseconds.", False),
            ("p90_ms", sa.Double(), "90th percentile in milliseconds.", False),
            ("p95_ms", sa.Double(), "95th percentile in milliseconds.", False),
            ("p99_ms", sa.Double(), "99th percentile in milliseconds.", False),
            ("max_ms", sa.Double(), "Longest time in milliseconds.", False),
        ),
        sa.PrimaryKeyConstraint("day", "base_model", "is_evaluation", "step", name="latency_by_day_pkey"),
    ),
    (
        "fallback_by_day",
        "How often no adapter was used and the base model answered alone, by day.",
        (
            DAY,
            POLICY,
            BASE_MODEL,
            IS_EVALUATION,
            ("n", sa.BigInteger(), "Number of answers that were routed by retrieval.", False),
            (
                "fell_back",
                sa.BigInteger(),
                "Number of answers that were routed by retrieval and for which no adapter was used.",
                False,
            ),
        ),
        sa.PrimaryKeyConstraint("day", "policy", "base_model", "is_evaluation", name="fallback_by_day_pkey"),
    ),
    (
        "cost_by_submitter",
        "What each submitter's jobs cost, by day.",
        (
            DAY,
            ("submitted_by", sa.Text(), "Database role that submitted the jobs.", False),
            POLICY,
            ("base_model", sa.Text(), "Base model that answered, or that the job asked for.", False),
            ("jobs", sa.BigInteger(), "Number of jobs that ended.", False),
            ("succeeded", sa.BigInteger(), "Number of jobs that were answered.", False),
            ("failed", sa.BigInteger(), "Number of jobs that failed.", False),
            ("attempts", sa.BigInteger(), "Number of attempts of the jobs that ended.", False),
            ("prompt_tokens", sa.BigInteger(), "Tokens in the prompts of the jobs that were answered.", False),
            (
                "output_tokens",
                sa.BigInteger(),
                "Tokens that were scored or generated for the jobs that were answered.",
                False,
            ),
            (
                "compute_s",
                sa.Double(),
                "Seconds of computing for the jobs that were answered: each batch's time from encoding to prediction, divided by its jobs; without waiting.",
                False,
            ),
        ),
        sa.PrimaryKeyConstraint("day", "submitted_by", "policy", "base_model", name="cost_by_submitter_pkey"),
    ),
    (
        "answers_by_tag",
        "Number of answers by day, tag and label.",
        (
            DAY,
            ("tag", sa.Text(), "Key of the tag.", False),
            ("value", sa.Text(), "Value of the tag as text, cut to 200 characters.", False),
            ("label", sa.Text(), "The choice that was the answer; empty if the answer was generated text.", False),
            POLICY,
            BASE_MODEL,
            (
                "n",
                sa.BigInteger(),
                "Number of answers with this tag, value, label, policy and base model on this day, without evaluations.",
                False,
            ),
            ("asked", sa.BigInteger(), "Number of the answers (n) whose right answer is known.", False),
            ("correct", sa.BigInteger(), "Number of the answers (n) that equal the expected answer exactly.", False),
        ),
        sa.PrimaryKeyConstraint("day", "tag", "value", "label", "policy", "base_model", name="answers_by_tag_pkey"),
    ),
)
NEW_COMMENTS = (
    "TABLE loracomp.report_refresh IS 'The reports that refresh_reports computes, with their age.'",
    "COLUMN loracomp.report_refresh.report IS 'Name of a table with rows by day, in schema loracomp.'",
    "COLUMN loracomp.report_refresh.refreshed_at IS "
    "'When the report was last refreshed; it counts the jobs that ended until then.'",
    "COLUMN loracomp.report_refresh.seconds IS 'Seconds that the last refresh took; null if there was none.'",
)
OLD_COMMENTS = (
    "TABLE loracomp.report_refresh IS 'When each materialized view that reports read was last refreshed.'",
    "COLUMN loracomp.report_refresh.report IS 'Name of a materialized view in schema loracomp.'",
    "COLUMN loracomp.report_refresh.refreshed_at IS 'When the view was refreshed; it contains the data up to then.'",
    "COLUMN loracomp.report_refresh.seconds IS "
    "'Seconds that the last refresh took; null if the view was not refreshed since it was created.'",
)
LAST_PURGED = """
SELECT max(day) FROM (SELECT day FROM loracomp.purged_day UNION ALL SELECT day FROM loracomp.purged_tag) AS d
WHERE day < ((now() - interval '1 hour') AT TIME ZONE 'UTC')::date
"""
# Jobs that are left of the days up to :last, with their answers.
LEFT = """
FROM loracomp.job AS j
{join} loracomp.prediction AS p ON p.job_id = j.id
CROSS JOIN LATERAL (SELECT (j.finished_at AT TIME ZONE 'UTC')::date AS day) AS d
{more}
WHERE j.finished_at < (CAST(:last AS date) + 1)::timestamp AT TIME ZONE 'UTC'
"""
CARRY = (
    """
    INSERT INTO loracomp.report_day (day, is_closed)
    SELECT day, true
    FROM (
        SELECT day FROM loracomp.purged_day UNION SELECT day FROM loracomp.purged_tag
        UNION SELECT d.day {left}
    ) AS u
    WHERE day <= :last
    """,
    """
    INSERT INTO loracomp.cost_by_submitter
    SELECT day, submitted_by, policy, base_model, sum(jobs), sum(succeeded), sum(failed), sum(attempts),
        sum(prompt_tokens), sum(output_tokens), sum(compute_s)
    FROM (
        SELECT day, submitted_by::text, policy, base_model, jobs, succeeded, failed, attempts, prompt_tokens,
            output_tokens, compute_s
        FROM loracomp.purged_day WHERE day <= :last
        UNION ALL
        SELECT d.day, j.submitted_by::text, j.policy, coalesce(p.base_model, j.base_model), 1,
            (j.status = 'succeeded')::int, (j.status = 'failed')::int, j.attempts, coalesce(p.prompt_tokens, 0),
            coalesce(p.output_tokens, 0), coalesce((
                (p.timings ->> 'encode')::float8 + (p.timings ->> 'route')::float8
                + coalesce((p.timings ->> 'load')::float8, 0) + coalesce((p.timings ->> 'compose')::float8, 0)
                + (p.timings ->> 'predict')::float8
            ) / 1000 / p.batch_size, 0)
        {left}
    ) AS u
    GROUP BY day, submitted_by, policy, base_model
    """,
    """
    INSERT INTO loracomp.accuracy_by_day
    SELECT day, evaluation, own_task, policy, base_model, sum(asked), sum(n), sum(correct)
    FROM (
        SELECT day, evaluation, own_task, policy, base_model, asked, n, correct
        FROM loracomp.purged_day WHERE day <= :last AND asked > 0
        UNION ALL
        SELECT d.day, j.evaluation, j.task, j.policy, j.base_model, 1, (j.status = 'succeeded')::int,
            coalesce(j.is_correct, false)::int
        {left} AND j.expected IS NOT NULL AND j.kind = 'predict'
    ) AS u
    GROUP BY day, evaluation, own_task, policy, base_model
    """,
    """
    INSERT INTO loracomp.answers_by_tag
    SELECT day, tag, value, label, policy, base_model, sum(n), sum(asked), sum(correct)
    FROM (
        SELECT day, tag, value, label, policy, base_model, n, asked, correct
        FROM loracomp.purged_tag WHERE day <= :last
        UNION ALL
        SELECT d.day, r.key, left(j.tags ->> r.key, 200),
            CASE WHEN j.choices IS NULL THEN '' ELSE left(p.output, 200) END, j.policy, p.base_model, 1,
            (j.expected IS NOT NULL)::int, (j.expected IS NOT NULL AND coalesce(j.is_correct, false))::int
        {tagged} AND j.evaluation IS NULL AND j.kind = 'predict' AND j.tags ->> r.key IS NOT NULL
            AND (j.choices IS NULL OR p.output IS NOT NULL)
    ) AS u
    GROUP BY day, tag, value, label, policy, base_model
    """,
)


def upgrade() -> None:
    op.create_table(
        "report_day",
        sa.Column("day", sa.Date(), nullable=False, comment="Day in UTC on which jobs ended."),
        sa.Column(
            "jobs",
            sa.BigInteger(),
            nullable=True,
            comment="Number of jobs from which the day's reports were computed; null: they must be computed again.",
        ),
        sa.Column(
            "times",
            sa.Interval(),
            nullable=True,
            comment="Sum of the times of day at which these jobs ended; it shows whether they are still the same.",
        ),
        sa.Column(
            "is_closed",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether the day's reports are final, because purge_jobs has deleted jobs of it or of a later day.",
        ),
        sa.PrimaryKeyConstraint("day"),
        schema="loracomp",
        comment="Days for which reports were computed, and from which jobs.",
    )
    for name, comment, columns, key in TABLES:
        made = (sa.Column(each, kind, nullable=nullable, comment=words) for each, kind, words, nullable in columns)
        op.create_table(name, *made, key, schema="loracomp", comment=comment)
    carry_over()
    # The reports of all other days are still to be computed, and not while everybody waits for this migration.
    op.execute("UPDATE loracomp.report_refresh SET refreshed_at = 'epoch', seconds = NULL")
    for table in ("purged_tag", "purged_day"):
        op.drop_table(table, schema="loracomp")
    for comment in NEW_COMMENTS:
        op.execute(f"COMMENT ON {comment}")


def carry_over() -> None:
    """Close the days of which jobs were purged."""
    last = op.get_bind().scalar(sa.text(LAST_PURGED))
    left = LEFT.format(join="LEFT JOIN", more="")
    tagged = LEFT.format(join="JOIN", more="JOIN loracomp.reported_tag AS r ON jsonb_exists(j.tags, r.key)")
    for statement in CARRY if last else ():
        op.get_bind().execute(sa.text(statement.format(left=left, tagged=tagged)), {"last": last})


PURGED_DAY = """
CREATE TABLE loracomp.purged_day (
    day date NOT NULL, submitted_by name NOT NULL, policy text NOT NULL, base_model text NOT NULL, evaluation text,
    own_task text, jobs bigint NOT NULL, succeeded bigint NOT NULL, failed bigint NOT NULL, attempts bigint NOT NULL,
    prompt_tokens bigint NOT NULL, output_tokens bigint NOT NULL, compute_s double precision NOT NULL,
    asked bigint NOT NULL, n bigint NOT NULL, correct bigint NOT NULL,
    CONSTRAINT purged_answers_must_add_up CHECK (correct >= 0 AND correct <= n AND n <= asked),
    CONSTRAINT purged_jobs_must_add_up
    CHECK (jobs > 0 AND succeeded >= 0 AND failed >= 0 AND succeeded + failed <= jobs),
    CONSTRAINT sums_of_purged_jobs_stand_once_a_day
    UNIQUE NULLS NOT DISTINCT (day, submitted_by, policy, base_model, evaluation, own_task)
)
"""
PURGED_TAG = """
CREATE TABLE loracomp.purged_tag (
    day date NOT NULL, tag text NOT NULL, value text NOT NULL, label text NOT NULL, policy text NOT NULL,
    base_model text NOT NULL, n bigint NOT NULL, asked bigint NOT NULL, correct bigint NOT NULL,
    CONSTRAINT purged_labels_must_add_up CHECK (n > 0 AND correct >= 0 AND correct <= asked AND asked <= n),
    CONSTRAINT purged_tag_pkey PRIMARY KEY (day, tag, value, label, policy, base_model)
)
"""


def downgrade() -> None:
    op.execute(PURGED_DAY)
    op.execute(PURGED_TAG)
    for name, *_ in reversed(TABLES):
        op.drop_table(name, schema="loracomp")
    op.drop_table("report_day", schema="loracomp")
    for comment in OLD_COMMENTS:
        op.execute(f"COMMENT ON {comment}")
