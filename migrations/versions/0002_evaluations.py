"""Evaluations know what they ask, and their jobs the example, so that answers to one row can be paired."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DUE = "run_at less priority x 60 s: the order of claims. Filled by a trigger."
DUE_WITH_EVALUATIONS = (
    "run_at less priority x 60 s, and 1000 minutes later in evaluations: the order of claims. Filled by a trigger."
)


def evaluation_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("split", sa.Text(), comment="Split whose rows it asks; null where its jobs were inserted by hand."),
        sa.Column(
            "kind",
            sa.Text(),
            server_default=sa.text("'predict'"),
            nullable=False,
            comment="predict: answers are compared. route: weights alone.",
        ),
        sa.Column(
            "base_model", sa.Text(), comment="Base model that it asks; null where its jobs were inserted by hand."
        ),
        sa.Column(
            "exclude_own",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether each row's own task is kept out of its mix.",
        ),
        sa.Column(
            "seed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Of the order in which rows are drawn.",
        ),
    ]


def upgrade() -> None:
    for column in evaluation_columns():
        op.add_column("evaluation", column, schema="loracomp")
    op.create_foreign_key(
        "evaluation_base_model_must_exist",
        "evaluation",
        "base_model",
        ["base_model"],
        ["name"],
        onupdate="CASCADE",
        source_schema="loracomp",
        referent_schema="loracomp",
    )
    op.create_check_constraint(
        "evaluated_split_must_be_train_validation_or_test",
        "evaluation",
        "split IN ('train', 'validation', 'test')",
        schema="loracomp",
    )
    op.create_check_constraint(
        "evaluation_kind_must_be_predict_or_route", "evaluation", "kind IN ('predict', 'route')", schema="loracomp"
    )
    op.add_column(
        "job",
        sa.Column(
            "example_id",
            sa.BigInteger(),
            comment="Example that it asks; evaluations only, the same row under each policy.",
        ),
        schema="loracomp",
    )
    op.create_check_constraint(
        "example_id_must_stand_with_an_evaluation",
        "job",
        "example_id IS NULL OR evaluation IS NOT NULL",
        schema="loracomp",
    )
    op.create_index(
        "job_queue_of_evaluations",
        "job",
        ["base_model", "due", "id"],
        schema="loracomp",
        postgresql_where=sa.text("status = 'queued' AND evaluation IS NOT NULL"),
    )
    op.create_index(
        "an_evaluation_asks_an_example_once_a_policy",
        "job",
        ["evaluation", "example_id", "policy"],
        unique=True,
        schema="loracomp",
        postgresql_where=sa.text("example_id IS NOT NULL"),
    )
    op.alter_column("job", "due", comment=DUE_WITH_EVALUATIONS, schema="loracomp")
    # As the trigger would have filled it, so that what waits goes behind everyday jobs too.
    op.execute(
        "UPDATE loracomp.job SET due = due + interval '1000 minutes' WHERE status = 'queued' AND evaluation IS NOT NULL"
    )


def downgrade() -> None:
    op.execute(
        "UPDATE loracomp.job SET due = due - interval '1000 minutes' WHERE status = 'queued' AND evaluation IS NOT NULL"
    )
    op.alter_column("job", "due", comment=DUE, schema="loracomp")
    op.drop_index("an_evaluation_asks_an_example_once_a_policy", "job", schema="loracomp")
    op.drop_index("job_queue_of_evaluations", "job", schema="loracomp")
    op.drop_constraint("example_id_must_stand_with_an_evaluation", "job", schema="loracomp")
    op.drop_column("job", "example_id", schema="loracomp")
    op.drop_constraint("evaluation_kind_must_be_predict_or_route", "evaluation", schema="loracomp")
    op.drop_constraint("evaluated_split_must_be_train_validation_or_test", "evaluation", schema="loracomp")
    op.drop_constraint("evaluation_base_model_must_exist", "evaluation", schema="loracomp")
    for column in evaluation_columns():
        op.drop_column("evaluation", column.name, schema="loracomp")
