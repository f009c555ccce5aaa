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
    "the choices are fitted; 0: no biases.",
)
EXAMPLES = sa.Column(
    "calibration_examples",
    sa.ARRAY(sa.BigInteger()),
    nullable=True,
    comment="Ids of the labelled examples on which choice_biases were fitted; null if they were not.",
)
BIASES = sa.Column(
    "choice_biases",
    sa.ARRAY(sa.Double()),
    nullable=True,
    comment="What was added to each choice's score, fitted on the right answers of calibration_examples; null: nothing.",
)
SCORES = "Log-likelihood of each choice in nats, divided as choice_normalization of the policy says"


def upgrade() -> None:
    op.add_column("policy", ROWS, schema="loracomp")
    op.create_check_constraint(
        "calibration_rows_must_be_between_0_and_1000",
        "policy",
        "calibration_rows BETWEEN 0 AND 1000",
        schema="loracomp",
    )
    op.add_column("prediction", EXAMPLES, schema="loracomp")
    op.add_column("prediction", BIASES, schema="loracomp")
    # NOT VALID and VALIDATE, so that answers are recorded while the rows are checked.
    op.execute(
        "ALTER TABLE loracomp.prediction ADD CONSTRAINT choice_biases_must_be_finite"
        " CHECK (-1e9 <= ALL (choice_biases) AND 1e9 >= ALL (choice_biases)) NOT VALID"
    )
    op.execute("ALTER TABLE loracomp.prediction VALIDATE CONSTRAINT choice_biases_must_be_finite")
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN choice_biases SET STORAGE EXTERNAL")
    op.execute(f"COMMENT ON COLUMN loracomp.prediction.choice_scores IS '{SCORES}, plus choice_biases.'")
    op.execute("ALTER TYPE loracomp.route_trace ADD ATTRIBUTE calibration_examples bigint[]")


def downgrade() -> None:
    op.execute("ALTER TYPE loracomp.route_trace DROP ATTRIBUTE calibration_examples")
    op.execute(f"COMMENT ON COLUMN loracomp.prediction.choice_scores IS '{SCORES}.'")
    op.drop_column("prediction", "choice_biases", schema="loracomp")
    op.drop_column("prediction", "calibration_examples", schema="loracomp")
    op.drop_column("policy", "calibration_rows", schema="loracomp")
