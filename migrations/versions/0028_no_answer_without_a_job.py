"""A prediction goes with its job: whoever deletes a job by hand leaves no answer behind."""

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

# Left behind by such deletions: nobody could see them but administrators, and nothing erased them.
DELETE_ORPHANS = """
DELETE FROM loracomp.prediction AS p WHERE NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = p.job_id)
"""


def upgrade() -> None:
    op.execute(DELETE_ORPHANS)
    op.create_foreign_key(
        "a_prediction_answers_a_job",
        "prediction",
        "job",
        ["job_id"],
        ["id"],
        source_schema="loracomp",
        referent_schema="loracomp",
        ondelete="CASCADE",
    )


def downgrade() -> None:
    op.drop_constraint("a_prediction_answers_a_job", "prediction", schema="loracomp", type_="foreignkey")
