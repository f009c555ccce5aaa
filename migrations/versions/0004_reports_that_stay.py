"""Adds tags that analysts may see, and sums by day that are kept when jobs are purged."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import UserDefinedType

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


class RoleName(UserDefinedType[str]):
    """Postgres's own type for identifiers."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "name"


def upgrade() -> None:
    op.create_table(
        "reported_tag",
        sa.Column("key", sa.Text(), nullable=False, comment="Key of tags that analysts may see."),
        sa.CheckConstraint("NOT loracomp.is_blank(key)", name="reported_tag_must_not_be_blank"),
        sa.CheckConstraint("char_length(key) <= 100", name="reported_tag_must_be_at_most_100_characters"),
        sa.PrimaryKeyConstraint("key"),
        schema="loracomp",
        comment="Tags that views of bi show. set_reported_tags sets them.",
    )
    op.create_table(
        "purged_day",
        sa.Column("day", sa.Date(), nullable=False, comment="Day on which the jobs ended, in UTC."),
        sa.Column("submitted_by", RoleName(), nullable=False, comment="Database role that submitted them."),
        sa.Column("policy", sa.Text(), nullable=False, comment="Name of the settings of routing and merging."),
        sa.Column(
            "base_model", sa.Text(), nullable=False, comment="Frozen language model that answered, or was asked for."
        ),
        sa.Column("evaluation", sa.Text(), nullable=True, comment="Named set of jobs; null for everyday jobs."),
        sa.Column("own_task", sa.Text(), nullable=True, comment="Task that they come from, where it is known."),
        sa.Column("jobs", sa.BigInteger(), nullable=False, comment="Jobs that ended and were purged since."),
        sa.Column("succeeded", sa.BigInteger(), nullable=False, comment="Those that were answered."),
        sa.Column("failed", sa.BigInteger(), nullable=False, comment="Those that ended failed."),
        sa.Column("attempts", sa.BigInteger(), nullable=False, comment="Attempts that they took."),
        sa.Column(
            "prompt_tokens",
            sa.BigInteger(),
            nullable=False,
            comment="Tokens of the prompts of those that were answered.",
        ),
        sa.Column(
            "output_tokens", sa.BigInteger(), nullable=False, comment="Tokens that were scored or generated for them."
        ),
        sa.Column(
            "compute_s", sa.Double(), nullable=False, comment="Their part of the seconds that their batches took."
        ),
        sa.Column("asked", sa.BigInteger(), nullable=False, comment="Jobs whose right answer is known."),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="Those of them that were answered."),
        sa.Column("correct", sa.BigInteger(), nullable=False, comment="Answers that were the expected ones."),
        sa.CheckConstraint("correct >= 0 AND correct <= n AND n <= asked", name="purged_answers_must_add_up"),
        sa.CheckConstraint(
            "jobs > 0 AND succeeded >= 0 AND failed >= 0 AND succeeded + failed <= jobs", name="purged_jobs_must_add_up"
        ),
        sa.UniqueConstraint(
            "day",
            "submitted_by",
            "policy",
            "base_model",
            "evaluation",
            "own_task",
            name="sums_of_purged_jobs_stand_once_a_day",
            postgresql_nulls_not_distinct=True,
        ),
        schema="loracomp",
        comment="What a day's jobs answered, cost and scored, summed up when they were purged; reports add it.",
    )
    op.create_table(
        "purged_tag",
        sa.Column("day", sa.Date(), nullable=False, comment="Day of the answers, in UTC."),
        sa.Column(
            "tag", sa.Text(), nullable=False, comment="Key of a tag that analysts could see when the jobs were purged."
        ),
        sa.Column("value", sa.Text(), nullable=False, comment="Its value, as text, of 200 characters at most."),
        sa.Column(
            "label",
            sa.Text(),
            nullable=False,
            comment="The choice that was the answer; empty where text was generated.",
        ),
        sa.Column("policy", sa.Text(), nullable=False, comment="Name of the settings of routing and merging."),
        sa.Column("base_model", sa.Text(), nullable=False, comment="Frozen language model."),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="Answers whose jobs were purged since."),
        sa.Column("asked", sa.BigInteger(), nullable=False, comment="Those of which the right answer is known."),
        sa.Column("correct", sa.BigInteger(), nullable=False, comment="Those of them that were the expected ones."),
        sa.CheckConstraint(
            "n > 0 AND correct >= 0 AND correct <= asked AND asked <= n", name="purged_labels_must_add_up"
        ),
        sa.PrimaryKeyConstraint("day", "tag", "value", "label", "policy", "base_model", name="purged_tag_pkey"),
        schema="loracomp",
        comment="Answers of purged jobs by tag, label and day; reports add it.",
    )


def downgrade() -> None:
    for table in ("purged_tag", "purged_day", "reported_tag"):
        op.drop_table(table, schema="loracomp")
