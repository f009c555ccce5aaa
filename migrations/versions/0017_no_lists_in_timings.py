"""A step's time in a list is no number: reports could not be refreshed with it."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

NAME = "timings_must_be_numbers_by_step"
CONDITION = (
    "jsonb_typeof(timings) = 'object' AND NOT jsonb_path_exists(timings, "
    """'{}$.* ? (@.type() <> "number" || @ < -1000000000000 || @ > 1000000000000)')"""
)


def upgrade() -> None:
    op.drop_constraint(NAME, "prediction", schema="loracomp")
    # Unless it is strict, a path looks into lists.
    op.create_check_constraint(NAME, "prediction", CONDITION.format("strict "), schema="loracomp")


def downgrade() -> None:
    op.drop_constraint(NAME, "prediction", schema="loracomp")
    op.create_check_constraint(NAME, "prediction", CONDITION.format(""), schema="loracomp")
