"""Adds to jobs the tasks, and optionally the weights, to answer them with."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CONSTRAINTS = {
    "tasks_must_be_a_list_of_1_to_64": "tasks IS NULL OR cardinality(tasks) BETWEEN 1 AND 64",
    "tasks_must_be_distinct_and_none_null": (
        "tasks IS NULL OR (array_position(tasks, NULL) IS NULL AND loracomp.texts_are_distinct(tasks))"
    ),
    "tasks_must_be_at_most_100000_characters_together": "tasks IS NULL OR loracomp.texts_length(tasks) <= 100000",
    "weights_must_be_one_for_each_of_the_tasks": (
        "weights IS NULL OR (tasks IS NOT NULL AND cardinality(weights) = cardinality(tasks))"
    ),
    # NaN counts as the largest number.
    "weights_must_be_above_0_and_at_most_1": (
        "weights IS NULL OR (array_position(weights, NULL) IS NULL AND 0 < ALL (weights) AND 1 >= ALL (weights))"
    ),
}


def upgrade() -> None:
    columns = {
        "tasks": (sa.Text(), "Tasks whose adapters alone may be composed; null: all that the submitter may use."),
        "weights": (sa.Double(), "Weights of those tasks' adapters, in their order, instead of retrieval; else null."),
    }
    for name, (kind, comment) in columns.items():
        column = sa.Column(name, sa.ARRAY(kind), nullable=True, comment=comment)
        op.add_column("job", column, schema="loracomp")
        # What submitters could find out by EXPLAIN, of jobs that they don't see.
        op.execute(f"ALTER TABLE loracomp.job ALTER COLUMN {name} SET STATISTICS 0")
    for name, condition in CONSTRAINTS.items():
        op.create_check_constraint(name, "job", condition, schema="loracomp")


def downgrade() -> None:
    for name in ("tasks", "weights"):
        op.drop_column("job", name, schema="loracomp")
