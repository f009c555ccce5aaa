"""Constraints of jobs refuse nested lists by name; until now Postgres refused them, naming no column."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NEW = "exclude_tasks_must_be_a_list"
BEFORE_AND_AFTER = {
    "stop_must_hold_at_most_16_texts_none_empty": (
        "array_position(stop, NULL) IS NULL AND array_position(stop, '') IS NULL AND cardinality(stop) <= 16",
        "stop = '{}' OR (array_ndims(stop) = 1 AND num_nulls(VARIADIC stop) = 0 AND '' <> ALL (stop) "
        "AND cardinality(stop) <= 16)",
    ),
    "exclude_tasks_must_not_hold_null": (
        "array_position(exclude_tasks, NULL) IS NULL",
        "num_nulls(VARIADIC exclude_tasks) = 0",
    ),
    "tasks_must_be_a_list_of_1_to_64": (
        "tasks IS NULL OR cardinality(tasks) BETWEEN 1 AND 64",
        "tasks IS NULL OR (array_ndims(tasks) = 1 AND cardinality(tasks) BETWEEN 1 AND 64)",
    ),
    "tasks_must_be_distinct_and_none_null": (
        "tasks IS NULL OR (array_position(tasks, NULL) IS NULL AND loracomp.texts_are_distinct(tasks))",
        "tasks IS NULL OR (num_nulls(VARIADIC tasks) = 0 AND loracomp.texts_are_distinct(tasks))",
    ),
    "weights_must_be_one_for_each_of_the_tasks": (
        "weights IS NULL OR (tasks IS NOT NULL AND cardinality(weights) = cardinality(tasks))",
        "weights IS NULL OR (tasks IS NOT NULL AND array_ndims(weights) = 1 "
        "AND cardinality(weights) = cardinality(tasks))",
    ),
    "weights_must_be_above_0_and_at_most_1": (
        "weights IS NULL OR (array_position(weights, NULL) IS NULL AND 0 < ALL (weights) AND 1 >= ALL (weights))",
        "weights IS NULL OR (num_nulls(VARIADIC weights) = 0 AND 0 < ALL (weights) AND 1 >= ALL (weights))",
    ),
}


def upgrade() -> None:
    for name, (_, condition) in BEFORE_AND_AFTER.items():
        replace(name, condition)
    op.create_check_constraint(NEW, "job", "array_ndims(exclude_tasks) = 1", schema="loracomp")


def downgrade() -> None:
    op.drop_constraint(NEW, "job", schema="loracomp")
    for name, (condition, _) in BEFORE_AND_AFTER.items():
        replace(name, condition)


def replace(name: str, condition: str) -> None:
    op.drop_constraint(name, "job", schema="loracomp")
    op.create_check_constraint(name, "job", condition, schema="loracomp")
