"""Partition prediction by ranges of job ids, so that old answers are dropped and not deleted one by one.

The table becomes the first partition as it is, with its indexes. If it has the CHECK that `loracomp init` adds beforehand, Postgres
doesn't read its rows. The SQL function maintain makes the other partitions. The foreign key to job goes, because with it Postgres would
look for the answer of each job that is deleted; a trigger of sql/ deletes the answers to deleted jobs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

CHECK = "job_ids_of_the_first_partition"
COMMENT_BEFORE = "Answers, each with its trace (how it was routed and composed) in arrays, which views unnest."
COMMENT = f"{COMMENT_BEFORE} Partitioned by ranges of job ids."

# Where the first partition ends: as its CHECK says, or the next million.
END = """
SELECT coalesce(
    (
        SELECT substring(pg_get_constraintdef(c.oid) FROM 'job_id < ''?([0-9]+)')::bigint
        FROM pg_catalog.pg_constraint AS c
        WHERE c.conrelid = 'loracomp.prediction'::regclass AND c.conname = 'job_ids_of_the_first_partition'
    ),
    (SELECT (s.last_value / 1000000 + 1) * 1000000 FROM loracomp.job_id_seq AS s)
)
"""

# Others' objects, which would go on to mean the first partition alone.
REFUSE = """
DO $$
DECLARE
    found CONSTANT text := (
        SELECT string_agg(DISTINCT o.object || ' depends on table prediction', E'\\n')
        FROM (
            SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
            FROM pg_catalog.pg_class AS c
            JOIN pg_catalog.pg_depend AS d ON d.refobjid IN (c.oid, c.reltype) AND (
                d.deptype = 'n' OR d.classid IN ('pg_policy'::regclass, 'pg_publication_rel'::regclass, 'pg_rewrite'::regclass)
            )
            WHERE c.oid = 'loracomp.prediction'::regclass AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_constraint AS k
                WHERE d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.conrelid = c.oid
            )
            UNION ALL
            SELECT format('trigger %I', t.tgname) FROM pg_catalog.pg_trigger AS t
            WHERE t.tgrelid = 'loracomp.prediction'::regclass AND NOT t.tgisinternal
        ) AS o (object)
    );
BEGIN
    IF found IS NOT NULL THEN
        RAISE EXCEPTION 'prediction can''t be partitioned' USING ERRCODE = 'dependent_objects_still_exist', DETAIL = found;
    END IF;
END
$$
"""

# What others added to the old table: indexes and grants.
ADDED = """
SELECT replace(replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '), ' ON {old} ', ' ON {new} ')
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = '{old}'::regclass AND NOT i.indisprimary
UNION ALL
SELECT format(
    'GRANT %s%s ON {new} TO %s%s', a.privilege_type, g.columns, coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC'),
    CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END
)
FROM pg_catalog.pg_class AS c
CROSS JOIN LATERAL (
    SELECT '', c.relacl
    UNION ALL
    SELECT format(' (%I)', t.attname), t.attacl FROM pg_catalog.pg_attribute AS t WHERE t.attrelid = c.oid
) AS g (columns, acl)
CROSS JOIN LATERAL aclexplode(g.acl) AS a
WHERE c.oid = '{old}'::regclass AND a.grantee <> c.relowner
"""


def upgrade() -> None:
    op.execute(REFUSE)
    end = op.get_bind().scalar(sa.text(END))
    op.drop_constraint("a_prediction_answers_a_job", "prediction", schema="loracomp")
    op.execute("CREATE SCHEMA loracomp_parts")
    op.execute("COMMENT ON SCHEMA loracomp_parts IS 'Partitions of tables of schema loracomp. Granted to no role.'")
    op.execute("ALTER TABLE loracomp.prediction SET SCHEMA loracomp_parts")
    op.execute("ALTER TABLE loracomp_parts.prediction RENAME TO prediction_0")
    make_like("loracomp_parts.prediction_0", "PARTITION BY RANGE (job_id)", COMMENT)
    op.execute(
        f"ALTER TABLE loracomp.prediction ATTACH PARTITION loracomp_parts.prediction_0 FOR VALUES FROM (MINVALUE) TO ({end})"
    )
    op.execute(f"ALTER TABLE loracomp_parts.prediction_0 DROP CONSTRAINT IF EXISTS {CHECK}")
    op.execute(f"COMMENT ON TABLE loracomp_parts.prediction_0 IS 'Answers to the jobs before {end}.'")
    op.execute(
        "CREATE TABLE loracomp_parts.prediction_others (LIKE loracomp.prediction INCLUDING ALL) "
        "WITH (toast_tuple_target = 4080)"
    )
    op.execute("ALTER TABLE loracomp.prediction ATTACH PARTITION loracomp_parts.prediction_others DEFAULT")
    op.execute("ALTER TABLE loracomp_parts.prediction_others ALTER COLUMN output SET STATISTICS 0")
    # Without a policy, it keeps out all but the owner; who reads through the table is held to the table's policies alone.
    for part in ("prediction_0", "prediction_others"):
        op.execute(f"ALTER TABLE loracomp_parts.{part} ENABLE ROW LEVEL SECURITY")
    op.execute(
        "COMMENT ON TABLE loracomp_parts.prediction_others IS 'Answers to jobs that have no other partition; usually none.'"
    )


def downgrade() -> None:
    # A schema of its own, because names of indexes are taken in the other two.
    op.execute("CREATE SCHEMA loracomp_partitioned")
    op.execute("ALTER TABLE loracomp.prediction SET SCHEMA loracomp_partitioned")
    make_like("loracomp_partitioned.prediction", "WITH (toast_tuple_target = 4080)", COMMENT_BEFORE)
    op.execute("INSERT INTO loracomp.prediction SELECT * FROM loracomp_partitioned.prediction")
    op.execute(
        "DELETE FROM loracomp.prediction AS p WHERE NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = p.job_id)"
    )
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
    op.execute("DROP TABLE loracomp_partitioned.prediction")
    op.execute("DROP SCHEMA loracomp_partitioned")
    op.execute("DROP SCHEMA loracomp_parts")


def make_like(old: str, kind: str, comment: str) -> None:
    """Make prediction with everything that the old table has but its rows."""
    op.execute(f"CREATE TABLE loracomp.prediction (LIKE {old} INCLUDING ALL EXCLUDING INDEXES) {kind}")
    op.execute(f"ALTER TABLE loracomp.prediction DROP CONSTRAINT IF EXISTS {CHECK}")
    op.execute("ALTER TABLE loracomp.prediction ALTER COLUMN output SET STATISTICS 0")
    op.execute(f"COMMENT ON TABLE loracomp.prediction IS '{comment}'")
    op.execute("ALTER TABLE loracomp.prediction ADD PRIMARY KEY (job_id)")
    for statement in op.get_bind().scalars(sa.text(ADDED.format(old=old, new="loracomp.prediction"))).all():
        op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
