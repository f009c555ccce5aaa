"""Whether an answer is the expected one stands with the job, so that reports read no traces; an index of their days."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

# Of jobs that an evaluation asked, and no others: the rest of the table is left as it is.
COMPARE = """
UPDATE loracomp.job AS j SET is_correct = p.output = j.expected
FROM loracomp.prediction AS p WHERE p.job_id = j.id AND j.expected IS NOT NULL
"""


def upgrade() -> None:
    op.add_column(
        "job",
        sa.Column(
            "is_correct", sa.Boolean(), comment="Whether the answer is the expected one; null where none is known."
        ),
        schema="loracomp",
    )
    op.execute(COMPARE)
    op.create_index(
        "prediction_day",
        "prediction",
        [sa.text("((created_at AT TIME ZONE 'UTC')::date)")],
        schema="loracomp",
        postgresql_using="brin",
    )


def downgrade() -> None:
    op.drop_index("prediction_day", "prediction", schema="loracomp")
    op.drop_column("job", "is_correct", schema="loracomp")
