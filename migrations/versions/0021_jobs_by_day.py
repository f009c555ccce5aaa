"""Counts of ended jobs by day, of which their cost is a part, and an index of the days on which jobs ended.

Of days that are closed, the counts have no reasons of failures, and evaluations and measurements count as other jobs:
that was not kept.
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

COMPUTE_S = (
    "Seconds of computing for the jobs that were answered: each batch's time from encoding to prediction, divided by "
    "its jobs; without waiting."
)


def count(name: str, comment: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger(), nullable=False, comment=comment)


def whose() -> list[sa.Column]:
    return [
        sa.Column("day", sa.Date(), nullable=False, comment="Day in UTC on which the jobs ended."),
        sa.Column("submitted_by", sa.Text(), nullable=False, comment="Database role that submitted the jobs."),
        sa.Column(
            "policy", sa.Text(), nullable=False, comment="Name of the policy: the settings of routing and merging."
        ),
    ]


def cost() -> list[sa.Column]:
    return [
        count("attempts", "Number of attempts of the jobs that ended."),
        count("prompt_tokens", "Tokens in the prompts of the jobs that were answered."),
        count("output_tokens", "Tokens that were scored or generated for the jobs that were answered."),
        sa.Column("compute_s", sa.Double(), nullable=False, comment=COMPUTE_S),
    ]


# Attempts, tokens and seconds were kept for all statuses together; they go with one of them.
CARRY = """
INSERT INTO loracomp.jobs_by_day
SELECT c.day, c.submitted_by, c.policy, c.base_model, false, 'predict', s.status, NULL, s.jobs, NULL,
    CASE WHEN s.is_first THEN c.attempts ELSE 0 END, CASE WHEN s.is_first THEN c.prompt_tokens ELSE 0 END,
    CASE WHEN s.is_first THEN c.output_tokens ELSE 0 END, CASE WHEN s.is_first THEN c.compute_s ELSE 0 END
FROM loracomp.cost_by_submitter AS c
JOIN loracomp.report_day AS d ON d.day = c.day AND d.is_closed
CROSS JOIN LATERAL (
    SELECT v.*, row_number() OVER (ORDER BY v.place) = 1 AS is_first
    FROM (VALUES
        (1, 'succeeded', c.succeeded), (2, 'failed', c.failed), (3, 'cancelled', c.jobs - c.succeeded - c.failed)
    ) AS v (place, status, jobs)
    WHERE v.jobs > 0
) AS s
"""
CARRY_BACK = """
INSERT INTO loracomp.cost_by_submitter
SELECT day, submitted_by, policy, base_model, sum(jobs), coalesce(sum(jobs) FILTER (WHERE status = 'succeeded'), 0),
    coalesce(sum(jobs) FILTER (WHERE status = 'failed'), 0), sum(attempts), sum(prompt_tokens), sum(output_tokens),
    sum(compute_s)
FROM loracomp.jobs_by_day GROUP BY day, submitted_by, policy, base_model
"""


def upgrade() -> None:
    day = sa.text("((finished_at AT TIME ZONE 'UTC')::date)")
    op.create_index("job_day", "job", [day], schema="loracomp", postgresql_using="brin")
    # Without knowing how many jobs a day has, the planner would not use the index. Of an empty table it would learn nothing.
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM loracomp.job)")):
        op.execute("ANALYZE loracomp.job")
    op.create_table(
        "jobs_by_day",
        *whose(),
        sa.Column("base_model", sa.Text(), nullable=False, comment="Base model that the jobs were for."),
        sa.Column(
            "is_evaluation",
            sa.Boolean(),
            nullable=False,
            comment="Whether the jobs come from evaluations rather than from people.",
        ),
        sa.Column("kind", sa.Text(), nullable=False, comment="Kind of the jobs: predict, route or measure."),
        sa.Column("status", sa.Text(), nullable=False, comment="How the jobs ended: succeeded, failed or cancelled."),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=True,
            comment="Short name of the error that ended the jobs; null if none did, or if it is unknown.",
        ),
        count("jobs", "Number of jobs that ended."),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True, comment="When the last of them ended."),
        *cost(),
        sa.UniqueConstraint(
            "day",
            "submitted_by",
            "policy",
            "base_model",
            "is_evaluation",
            "kind",
            "status",
            "reason",
            name="jobs_by_day_key",
            postgresql_nulls_not_distinct=True,
        ),
        schema="loracomp",
        comment="Number of ended jobs and what they cost, by day and by how they ended.",
    )
    op.execute(CARRY)
    op.drop_table("cost_by_submitter", schema="loracomp")
    op.execute("DELETE FROM loracomp.report_refresh WHERE report = 'cost_by_submitter'")


def downgrade() -> None:
    op.create_table(
        "cost_by_submitter",
        *whose(),
        sa.Column(
            "base_model", sa.Text(), nullable=False, comment="Base model that answered, or that the job asked for."
        ),
        count("jobs", "Number of jobs that ended."),
        count("succeeded", "Number of jobs that were answered."),
        count("failed", "Number of jobs that failed."),
        *cost(),
        sa.PrimaryKeyConstraint("day", "submitted_by", "policy", "base_model", name="cost_by_submitter_pkey"),
        schema="loracomp",
        comment="What each submitter's jobs cost, by day.",
    )
    op.execute(CARRY_BACK)
    op.drop_table("jobs_by_day", schema="loracomp")
    op.drop_index("job_day", "job", schema="loracomp")
    # The release before has only closed days in this table, and shows the others from their jobs.
    op.execute(
        "DELETE FROM loracomp.accuracy_by_day AS a USING loracomp.report_day AS d WHERE d.day = a.day AND NOT d.is_closed"
    )
    op.execute("DELETE FROM loracomp.report_refresh WHERE report IN ('jobs_by_day', 'accuracy_by_day')")
