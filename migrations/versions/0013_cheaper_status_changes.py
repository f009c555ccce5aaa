"""What every change of a job's status, and every prediction, costs: checks of what is empty, compression in vain."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

CHECKS = {
    "stop_must_be_at_most_10000_characters_together": ("stop = '{}'", "loracomp.texts_length(stop) <= 10000"),
    "exclude_tasks_must_be_at_most_100000_characters_together": (
        "exclude_tasks = '{}'",
        "loracomp.texts_length(exclude_tasks) <= 100000",
    ),
    "tags_must_be_at_most_100000_characters": ("tags = '{}'", "char_length(tags::text) <= 100000"),
}


def upgrade() -> None:
    for name, (empty, check) in CHECKS.items():
        op.drop_constraint(name, "job", schema="loracomp", type_="check")
        op.create_check_constraint(name, "job", f"{empty} OR {check}", schema="loracomp")
    # Random numbers of half precision don't get shorter.
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN query_embedding SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN query_embedding SET STORAGE EXTENDED")
    for name, (_, check) in CHECKS.items():
        op.drop_constraint(name, "job", schema="loracomp", type_="check")
        op.create_check_constraint(name, "job", check, schema="loracomp")
