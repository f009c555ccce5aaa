"""Creates the schema of 1.0, as 0001_tables.sql has it: frozen, and it imports nothing that may change."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
DO $$
BEGIN
    EXECUTE (
        SELECT 'DROP TABLE ' || string_agg(oid::regclass::text, ', ') FROM pg_class
        WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
    );
    EXECUTE (
        SELECT 'DROP SEQUENCE ' || string_agg(oid::regclass::text, ', ') FROM pg_class
        WHERE relnamespace = 'loracomp'::regnamespace AND relkind = 'S'
    );
END
$$
"""


def _run(source: str) -> None:
    op.execute(source.replace(":", r"\:"))  # else alembic takes what follows a colon for a parameter


def upgrade() -> None:
    _run(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute("DROP TYPE loracomp.route_trace, loracomp.answer, loracomp.measured")
    _run(TABLES)
    op.execute(
        "DROP FUNCTION loracomp.texts_are_not_blank(text[]), loracomp.texts_are_distinct(text[]), "
        "loracomp.texts_length(text[]), loracomp.longest_text(text[]), loracomp.is_blank(text), loracomp.white_space()"
    )
    op.execute("DROP SCHEMA bi, loracomp_parts")
