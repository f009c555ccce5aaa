"""Biases of choices, fitted on the labelled examples of a task without an adapter."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

ROWS = sa.Column(
    "calibration_rows",
    sa.Integer(),
    server_default=sa.text("64"),
    nullable=False,
    comment="With weighting measured, for a task without an adapter: most of its labelled examples on which biases of "
    "the choices are fitted, 4 to 1000; 0: no biases.",
)
EXAMPLES = sa.Column(
    "calibration_examples",
    sa.ARRAY(sa.BigInteger()),
    nullable=True,
    comment="Ids of the labelled examples on which the choices' biases are fitted; null: the choices have none.",
)
BIASES = sa.Column(
    "choice_biases",
    sa.ARRAY(sa.Double()),
    nullable=True,
    comment="What was added to each choice's score, fitted on the right answers of calibration_examples; null: nothing.",
)
CONSTRAINTS = (
    (
        "policy",
        "calibration_rows_must_be_0_or_between_4_and_1000",
        "calibration_rows = 0 OR calibration_rows BETWEEN 4 AND 1000",
    ),
    ("prediction", "choice_biases_must_be_finite", "-1e9 <= ALL (choice_biases) AND 1e9 >= ALL (choice_biases)"),
    (
        "prediction",
        "each_choice_bias_belongs_to_a_score",
        "choice_biases IS NULL OR coalesce(cardinality(choice_biases) = cardinality(choice_scores), false)",
    ),
)
SCORES = "Log-likelihood of each choice in nats, divided as choice_normalization of the policy says"


def upgrade() -> None:
    op.add_column("policy", ROWS, schema="loracomp")
    op.add_column("prediction", EXAMPLES, schema="loracomp")
    op.add_column("prediction", BIASES, schema="loracomp")
    for table, name, condition in CONSTRAINTS:
        op.create_check_constraint(name, table, condition, schema="loracomp")
    op.drop_index("measurement_task", "measurement", schema="loracomp")
    # With example_id, so that a task's first measured examples are found without a sort.
    op.create_index("measurement_task", "measurement", ["task_id", "base_model_id", "example_id"], schema="loracomp")
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN choice_biases SET STORAGE EXTERNAL")
    op.execute(f"COMMENT ON COLUMN loracomp.prediction.choice_scores IS '{SCORES}, plus choice_biases.'")
    op.execute("ALTER TYPE loracomp.route_trace ADD ATTRIBUTE calibration_examples bigint[]")


def downgrade() -> None:
    op.drop_index("measurement_task", "measurement", schema="loracomp")
    op.create_index("measurement_task", "measurement", ["task_id", "base_model_id"], schema="loracomp")
    op.execute("ALTER TYPE loracomp.route_trace DROP ATTRIBUTE calibration_examples")
    op.execute(f"COMMENT ON COLUMN loracomp.prediction.choice_scores IS '{SCORES}.'")
    op.drop_column("prediction", "choice_biases", schema="loracomp")
    op.drop_column("prediction", "calibration_examples", schema="loracomp")
    op.drop_column("policy", "calibration_rows", schema="loracomp")
