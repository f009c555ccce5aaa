"""Every table, view, column and function says what it is."""

from loracomp import db

# alembic_version is alembic's own.
UNCOMMENTED = """
SELECT format('%s.%s', n.nspname, c.relname) AS object
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> 'alembic_version'
    AND obj_description(c.oid, 'pg_class') IS NULL
UNION ALL
SELECT format('%s.%s.%s', n.nspname, c.relname, a.attname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> 'alembic_version'
    AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
UNION ALL
SELECT p.oid::regprocedure::text
FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi')
    AND obj_description(p.oid, 'pg_proc') IS NULL
ORDER BY 1
"""


def test_every_object_has_a_comment(connection: db.Connection) -> None:
    assert [row["object"] for row in connection.execute(UNCOMMENTED)] == []
