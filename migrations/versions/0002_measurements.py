"""Adds measurements of adapters on examples, jobs of kind measure, and the weighting 'measured'."""

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

WEIGHTING = (
    "similarity: probabilities, renormalised over the kept. uniform: equal weights.",
    "similarity: probabilities, renormalised over the kept. uniform: equal weights. measured: expected gains, of "
    "the adapters that are expected to help.",
)

POLICY = """
INSERT INTO loracomp.policy (name, description, weighting, strategy, max_adapters)
VALUES ('measured', 'Adapters that measured examples expect to help; where none does, the base model.', 'measured', 'cat', 3)
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    measurements()
    jobs_that_measure()
    weighting()


def measurements() -> None:
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


def jobs_that_measure() -> None:
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


def weighting() -> None:
    op.add_column(
        "policy",
        sa.Column(
            "gain_prior",
            sa.Double(),
            server_default=sa.text("0.1"),
            nullable=False,
            comment="Draws expected gains towards 0: 0.1 counts as a tenth of the retrieved examples that gain nothing.",
        ),
        schema="loracomp",
    )
    op.add_column(
        "policy",
        sa.Column(
            "gain_margin",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Expected gain above which an adapter is composed, in nats, where weighting is measured.",
        ),
        schema="loracomp",
    )
    op.alter_column("policy", "weighting", comment=WEIGHTING[1], schema="loracomp")
    replace(
        "weighting_must_be_similarity_or_uniform",
        "weighting_must_be_similarity_uniform_or_measured",
        "weighting IN ('similarity', 'uniform', 'measured')",
        table="policy",
    )
    op.create_check_constraint(
        "gain_prior_must_be_between_0_and_1000", "policy", "gain_prior BETWEEN 0 AND 1000", schema="loracomp"
    )
    op.create_check_constraint(
        "gain_margin_must_be_between_minus_1000_and_1000",
        "policy",
        "gain_margin BETWEEN -1000 AND 1000",
        schema="loracomp",
    )
    op.add_column(
        "prediction",
        sa.Column(
            "expected_gains",
            sa.ARRAY(sa.Double()),
            nullable=True,
            comment="What the adapter of each of `tasks` was expected to gain, in nats; null where nothing was measured.",
        ),
        schema="loracomp",
    )
    op.create_check_constraint(
        "expected_gains_must_be_finite",
        "prediction",
        "-1e9 <= ALL (array_remove(expected_gains, NULL)) AND 1e9 >= ALL (array_remove(expected_gains, NULL))",
        schema="loracomp",
    )
    # Numbers don't compress.
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN expected_gains SET STORAGE EXTERNAL")
    op.execute("ALTER TYPE loracomp.route_trace ADD ATTRIBUTE expected_gains double precision[]")
    op.execute(POLICY)


def replace(old: str, new: str, condition: str, table: str = "job") -> None:
    op.drop_constraint(old, table, schema="loracomp")
    op.create_check_constraint(new, table, condition, schema="loracomp")


def downgrade() -> None:
    op.execute("ALTER TYPE loracomp.route_trace DROP ATTRIBUTE expected_gains")
    op.drop_column("prediction", "expected_gains", schema="loracomp")
    op.execute("UPDATE loracomp.policy SET weighting = 'similarity' WHERE weighting = 'measured'")
    replace(
        "weighting_must_be_similarity_uniform_or_measured",
        "weighting_must_be_similarity_or_uniform",
        "weighting IN ('similarity', 'uniform')",
        table="policy",
    )
    op.alter_column("policy", "weighting", comment=WEIGHTING[0], schema="loracomp")
    for column in ("gain_margin", "gain_prior"):
        op.drop_column("policy", column, schema="loracomp")
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
