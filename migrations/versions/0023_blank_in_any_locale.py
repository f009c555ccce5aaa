r"""What is blank no longer depends on the server's locale: to libc's, \S is a no-break space too."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

# Unicode's white space, and the four separators that Python counts as such, too.
HELPERS = r"""
CREATE FUNCTION loracomp.white_space() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
COMMENT ON FUNCTION loracomp.white_space IS
'White space as the inside of a regular expression''s brackets: the same on every server, where \s is not.';
CREATE FUNCTION loracomp.is_blank(value text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN value COLLATE "C" !~ ('[^' || loracomp.white_space() || ']');
COMMENT ON FUNCTION loracomp.is_blank IS 'Whether a text has nothing but white space; null for null.';
"""

TEXTS_ARE_NOT_BLANK = """
CREATE OR REPLACE FUNCTION loracomp.texts_are_not_blank(texts text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN NOT EXISTS (SELECT FROM unnest(texts) AS t (value) WHERE t.value IS NULL OR {blank})
"""

NAMED = ("base_model", "task", "adapter", "policy", "evaluation")

# They never had an answer, and the constraint would keep workers from claiming them, and others with them.
END_BLANK_JOBS = """
WITH ended AS (
    UPDATE loracomp.job SET
        status = 'failed', finished_at = now(), lease_token = NULL, lease_expires_at = NULL,
        error_code = 'prompt_blank', error = 'prompt, or one of the choices, is nothing but white space'
    WHERE status IN ('queued', 'running')
        AND (loracomp.is_blank(prompt) OR NOT loracomp.texts_are_not_blank(choices))
    RETURNING id, attempts, worker
)
INSERT INTO loracomp.audit_event (entity, entity_id, action, new_status, attempt, worker, reason)
SELECT 'job', id, 'update', 'failed', attempts, worker, 'prompt_blank' FROM ended
"""


def upgrade() -> None:
    op.execute(HELPERS)
    op.execute(TEXTS_ARE_NOT_BLANK.format(blank="loracomp.is_blank(t.value)"))
    op.execute(END_BLANK_JOBS)
    _check("job", "NOT loracomp.is_blank(prompt)")
    for table in NAMED:
        _check(table, "NOT loracomp.is_blank(name)")


def downgrade() -> None:
    _check("job", r"prompt ~ '\S'")
    for table in NAMED:
        _check(table, "btrim(name) <> ''")
    op.execute(TEXTS_ARE_NOT_BLANK.format(blank=r"t.value !~ '\S'"))
    op.execute("DROP FUNCTION loracomp.is_blank(text), loracomp.white_space()")


def _check(table: str, condition: str) -> None:
    name = "prompt_must_not_be_blank" if table == "job" else f"{table}_name_must_not_be_blank"
    op.drop_constraint(name, table, schema="loracomp")
    op.create_check_constraint(name, table, condition, schema="loracomp", postgresql_not_valid=True)
    # Rows of old that break it stay as they are.
    broken = f"SELECT FROM loracomp.{table} WHERE NOT ({condition})"
    if not op.get_bind().scalar(sa.text(f"SELECT EXISTS ({broken})")):
        op.execute(f"ALTER TABLE loracomp.{table} VALIDATE CONSTRAINT {name}")
