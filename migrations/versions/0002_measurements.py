"""Measurements: what each adapter is worth on each example, and the jobs that find it out."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What measures waits behind everybody else's jobs, as what evaluates does.
QUEUE = "job_queue_of_evaluations"
BACKGROUND = "job_queue_in_the_background"
EVALUATED = "status = 'queued' AND evaluation IS NOT NULL AND NOT scheduled"
IN_THE_BACKGROUND = "status = 'queued' AND (evaluation IS NOT NULL OR kind = 'measure') AND NOT scheduled"

# Column of job: its comment before and after.
COMMENTS = {
    "kind": (
        "predict: an answer. route: the weights alone.",
        "predict: an answer. route: the weights alone. measure: what adapters are worth on an example.",
    ),
    "task": (
        "Task that it comes from; evaluations only.",
        "Task that it comes from; evaluations and measuring only.",
    ),
    "expected": ("The right answer; evaluations only.", "The right answer; evaluations and measuring only."),
    "example_id": (
        "Example that it asks; evaluations only, the same row under each policy.",
        "Example that it asks; evaluations (the same row under each policy) and measuring.",
    ),
    "due": (
        "run_at less priority x 60 s, and 1000 minutes later in evaluations: the order of claims. Filled by a trigger.",
        "run_at less priority x 60 s, and 1000 minutes later to evaluate or measure: the order of claims. Filled by a "
        "trigger.",
    ),
}


def upgrade() -> None:
    op.create_table(
        "measurement",
        sa.Column("example_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The example."),
        sa.Column(
            "base_model_id",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="The base model that the adapters belong to.",
        ),
        sa.Column(
            "task_id",
            sa.Integer(),
            nullable=False,
            comment="The example's task, here again: routing looks for tasks with measured examples.",
        ),
        sa.Column(
            "choice_normalization",
            sa.Text(),
            nullable=False,
            comment="What the choices' log-likelihoods were divided by before their softmax: none, characters, tokens.",
        ),
        sa.Column(
            "base_score",
            sa.Double(),
            nullable=False,
            comment="Log-probability of the right answer under the base model alone, in nats: given the choices, or per token "
            "of a text.",
        ),
        sa.Column(
            "base_is_right",
            sa.Boolean(),
            nullable=True,
            comment="Whether the base model alone chooses right; null where there are no choices.",
        ),
        sa.Column("adapter_ids", sa.ARRAY(sa.Integer()), nullable=False, comment="Adapters that were measured."),
        sa.Column(
            "gains",
            sa.ARRAY(sa.REAL()),
            nullable=False,
            comment="Log-probability of the right answer under each of them, minus the base model's in the same batch.",
        ),
        sa.Column(
            "are_right",
            sa.ARRAY(sa.Boolean()),
            nullable=False,
            comment="Whether each of them chooses right; null where there are no choices.",
        ),
        sa.Column("worker", sa.Text(), nullable=True, comment="Worker that measured last."),
        sa.Column(
            "measured_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was measured last.",
        ),
        sa.CheckConstraint(
            "choice_normalization IN ('none', 'characters', 'tokens')",
            name="measured_normalization_must_be_none_characters_or_tokens",
        ),
        sa.CheckConstraint("base_score BETWEEN -1e9 AND 0.001", name="base_score_must_be_a_log_probability"),
        sa.CheckConstraint("-1e9 <= ALL (gains) AND 1e9 >= ALL (gains)", name="gains_must_be_finite"),
        sa.CheckConstraint(
            "cardinality(gains) = cardinality(adapter_ids) AND cardinality(are_right) = cardinality(adapter_ids)",
            name="each_measured_adapter_has_a_gain",
        ),
        sa.ForeignKeyConstraint(
            ["example_id", "task_id"],
            ["loracomp.example.id", "loracomp.example.task_id"],
            name="measurement_belongs_to_an_example_of_its_task",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["base_model_id"],
            ["loracomp.base_model.id"],
            name="measured_base_model_must_exist",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("example_id", "base_model_id", name="an_example_has_one_measurement_a_base_model"),
        schema="loracomp",
        comment="What adapters are worth on examples: a narrow row an example and base model, which routing reads.",
    )
    op.create_index("measurement_task", "measurement", ["task_id", "base_model_id"], schema="loracomp")
    op.add_column(
        "job",
        sa.Column(
            "adapter_ids",
            sa.ARRAY(sa.Integer()),
            nullable=True,
            comment="Adapters to measure on its example; jobs of kind measure only.",
        ),
        schema="loracomp",
    )
    # What submitters could find out by EXPLAIN, of jobs that they don't see.
    op.execute("ALTER TABLE loracomp.job ALTER COLUMN adapter_ids SET STATISTICS 0")
    replace(
        "kind_must_be_predict_or_route",
        "kind_must_be_predict_route_or_measure",
        "kind IN ('predict', 'route', 'measure')",
    )
    replace(
        "example_id_must_stand_with_an_evaluation",
        "example_id_is_for_evaluations_and_measuring",
        "example_id IS NULL OR evaluation IS NOT NULL OR kind = 'measure'",
    )
    op.create_check_constraint(
        "jobs_of_kind_measure_come_from_measure_task",
        "job",
        "CASE kind WHEN 'measure' THEN num_nulls(example_id, expected, adapter_ids) = 0 AND evaluation IS NULL "
        "ELSE adapter_ids IS NULL END",
        schema="loracomp",
    )
    for column, (_, comment) in COMMENTS.items():
        op.alter_column("job", column, comment=comment, schema="loracomp")
    op.drop_index(QUEUE, "job", schema="loracomp")
    op.create_index(
        BACKGROUND, "job", ["base_model", "due", "id"], schema="loracomp", postgresql_where=sa.text(IN_THE_BACKGROUND)
    )
    op.create_index(
        "job_to_measure",
        "job",
        ["example_id"],
        schema="loracomp",
        postgresql_where=sa.text("kind = 'measure' AND finished_at IS NULL"),
    )


def replace(old: str, new: str, condition: str) -> None:
    op.drop_constraint(old, "job", schema="loracomp")
    op.create_check_constraint(new, "job", condition, schema="loracomp")


def downgrade() -> None:
    op.execute("DELETE FROM loracomp.job WHERE kind = 'measure'")
    op.drop_index("job_to_measure", "job", schema="loracomp")
    op.drop_index(BACKGROUND, "job", schema="loracomp")
    op.create_index(QUEUE, "job", ["base_model", "due", "id"], schema="loracomp", postgresql_where=sa.text(EVALUATED))
    op.drop_constraint("jobs_of_kind_measure_come_from_measure_task", "job", schema="loracomp")
    replace(
        "example_id_is_for_evaluations_and_measuring",
        "example_id_must_stand_with_an_evaluation",
        "example_id IS NULL OR evaluation IS NOT NULL",
    )
    replace("kind_must_be_predict_route_or_measure", "kind_must_be_predict_or_route", "kind IN ('predict', 'route')")
    for column, (comment, _) in COMMENTS.items():
        op.alter_column("job", column, comment=comment, schema="loracomp")
    op.drop_column("job", "adapter_ids", schema="loracomp")
    op.drop_table("measurement", schema="loracomp")
