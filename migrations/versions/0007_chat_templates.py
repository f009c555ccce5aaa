"""Chat templates of base models, system texts, and what ended a generated text."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COLUMNS = {
    "base_model": sa.Column(
        "has_chat_template",
        sa.Boolean(),
        server_default=sa.text("false"),
        nullable=False,
        comment="Whether its tokenizer has a chat template.",
    ),
    "policy": sa.Column(
        "chat_template",
        sa.Text(),
        server_default=sa.text("'generation'"),
        nullable=False,
        comment="Which prompts stand in the base model's chat template, where it has one: generation (those without "
        "choices), always, never.",
    ),
    "job": sa.Column(
        "chat_template",
        sa.Boolean(),
        nullable=True,
        comment="Whether the prompt stands in the base model's chat template; null: as the policy says, or with a "
        "system text.",
    ),
    "prediction": sa.Column(
        "chat_template",
        sa.Boolean(),
        nullable=True,
        comment="Whether the prompt stood in the base model's chat template.",
    ),
}
SYSTEM_TEXT = sa.Column(
    "system_text",
    sa.Text(),
    nullable=True,
    comment="What the chat template puts before the prompt as the system's message.",
)
FINISH_REASON = sa.Column(
    "finish_reason",
    sa.Text(),
    nullable=True,
    comment="What ended generated text: end_of_text, stop, length (max_new_tokens), or no_tokens: it ended before it "
    "began.",
)
CONSTRAINTS = (
    (
        "policy",
        "chat_template_must_be_generation_always_or_never",
        "chat_template IN ('generation', 'always', 'never')",
    ),
    ("job", "system_text_must_not_be_blank", "NOT loracomp.is_blank(system_text)"),
    ("job", "system_text_must_be_at_most_100000_characters", "char_length(system_text) <= 100000"),
    ("job", "a_system_text_needs_the_chat_template", "system_text IS NULL OR chat_template IS NOT FALSE"),
    (
        "prediction",
        "finish_reason_must_be_a_known_one",
        "finish_reason IN ('end_of_text', 'stop', 'length', 'no_tokens')",
    ),
)


def upgrade() -> None:
    for table, column in COLUMNS.items():
        op.add_column(table, column, schema="loracomp")
    op.add_column("job", SYSTEM_TEXT, schema="loracomp")
    op.add_column("prediction", FINISH_REASON, schema="loracomp")
    for column_name in ("chat_template", "system_text"):
        # What submitters could find out by EXPLAIN, of jobs that they don't see.
        op.execute(f"ALTER TABLE loracomp.job ALTER COLUMN {column_name} SET STATISTICS 0")
    for table, name, condition in CONSTRAINTS:
        op.create_check_constraint(name, table, condition, schema="loracomp")
    op.execute("ALTER TYPE loracomp.route_trace ADD ATTRIBUTE chat_template boolean")


def downgrade() -> None:
    op.execute("ALTER TYPE loracomp.route_trace DROP ATTRIBUTE chat_template")
    op.drop_column("prediction", "finish_reason", schema="loracomp")
    op.drop_column("job", "system_text", schema="loracomp")
    for table, column in COLUMNS.items():
        op.drop_column(table, column.name, schema="loracomp")
