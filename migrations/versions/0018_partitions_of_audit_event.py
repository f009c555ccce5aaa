"""Partition the audit's events of jobs by the ranges of prediction, so that they are dropped with their jobs' answers.

The table becomes the default partition as it is: it keeps the registry's events for ever, and the events of the jobs so far. Events of
later jobs go into the partition audit_event_jobs, which is partitioned by ranges of job ids. If the old table has the CHECK that `loracomp
init` adds beforehand, Postgres doesn't read its rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

CHECK = "job_events_of_the_first_partition"
COMMENT = "Audit log: who changed what, and when. Triggers write it; rows are never changed."
PARTITIONED = f"{COMMENT} Events of jobs are partitioned by ranges of job ids."

# The first job whose events go into partitions: the first of all if there are no events of jobs; else as the CHECK says, or the next
# million.
FIRST_ID = """
SELECT CASE WHEN NOT EXISTS (SELECT FROM loracomp.audit_event WHERE entity = 'job' AND entity_id IS NOT NULL) THEN 0 ELSE coalesce(
    (
        SELECT substring(pg_get_constraintdef(c.oid) FROM 'entity_id < ''?([0-9]+)')::bigint
        FROM pg_catalog.pg_constraint AS c
        WHERE c.conrelid = 'loracomp.audit_event'::regclass AND c.conname = 'job_events_of_the_first_partition'
    ),
    (SELECT (s.last_value / 1000000 + 1) * 1000000 FROM loracomp.job_id_seq AS s)
) END
"""
NEXT_EVENT = "SELECT pg_catalog.nextval(pg_catalog.pg_get_serial_sequence('loracomp.audit_event', 'id'))"

# The ranges of prediction that contain such jobs.
RANGES = """
SELECT r.first_id, r.bound
FROM (
    SELECT substring(c.relname FROM '[0-9]+$') AS first_id, pg_get_expr(c.relpartbound, c.oid) AS bound
    FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'loracomp.prediction'::regclass
) AS r
WHERE substring(r.bound FROM 'TO [(]''([0-9]+)')::bigint > {first_id}
"""

# Others' objects, which would go on to mean the default partition alone.
REFUSE = """
DO $$
DECLARE
    found CONSTANT text := (
        SELECT string_agg(DISTINCT o.object || ' depends on table audit_event', E'\\n')
        FROM (
            SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
            FROM pg_catalog.pg_class AS c
            JOIN pg_catalog.pg_depend AS d ON d.refobjid IN (c.oid, c.reltype) AND (
                d.deptype = 'n' OR d.classid IN ('pg_policy'::regclass, 'pg_publication_rel'::regclass, 'pg_rewrite'::regclass)
            )
            WHERE c.oid = 'loracomp.audit_event'::regclass AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_constraint AS k
                WHERE d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.conrelid = c.oid
            )
            UNION ALL
            SELECT format('trigger %I', t.tgname) FROM pg_catalog.pg_trigger AS t
            WHERE t.tgrelid = 'loracomp.audit_event'::regclass AND NOT t.tgisinternal
        ) AS o (object)
    );
BEGIN
    IF found IS NOT NULL THEN
        RAISE EXCEPTION 'audit_event can''t be partitioned' USING ERRCODE = 'dependent_objects_still_exist', DETAIL = found;
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
    first_id = op.get_bind().scalar(sa.text(FIRST_ID))
    event = op.get_bind().scalar(sa.text(NEXT_EVENT))
    op.execute("ALTER TABLE loracomp.audit_event SET SCHEMA loracomp_parts")
    op.execute("ALTER TABLE loracomp_parts.audit_event RENAME TO audit_event_others")
    op.execute("ALTER TABLE loracomp_parts.audit_event_others ALTER COLUMN id DROP IDENTITY")
    make_like("loracomp_parts.audit_event_others", "PARTITION BY RANGE (entity, entity_id)", PARTITIONED, event)
    op.execute("ALTER TABLE loracomp.audit_event ATTACH PARTITION loracomp_parts.audit_event_others DEFAULT")
    op.execute(
        "COMMENT ON TABLE loracomp_parts.audit_event_others IS 'Events of the registry, and of jobs before "
        f"{first_id}.'"
    )
    op.execute(
        "CREATE TABLE loracomp_parts.audit_event_jobs (LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY) "
        "PARTITION BY RANGE (entity_id)"
    )
    op.execute(f"COMMENT ON TABLE loracomp_parts.audit_event_jobs IS 'Events of jobs from {first_id}.'")
    op.execute(
        "ALTER TABLE loracomp.audit_event ATTACH PARTITION loracomp_parts.audit_event_jobs "
        f"FOR VALUES FROM ('job', {first_id}) TO ('job', MAXVALUE)"
    )
    op.execute(f"ALTER TABLE loracomp_parts.audit_event_others DROP CONSTRAINT IF EXISTS {CHECK}")
    # Without a policy, it keeps out all but the owner; who reads through the table is held to the table's policies alone.
    for part in ("audit_event_others", "audit_event_jobs"):
        op.execute(f"ALTER TABLE loracomp_parts.{part} ENABLE ROW LEVEL SECURITY")
    add_part("audit_event_job_others", "DEFAULT", "Events of erased jobs, and of jobs that have no other partition.")
    for first, bound in op.get_bind().execute(sa.text(RANGES.format(first_id=first_id))).all():
        add_part(f"audit_event_{first}", bound, f"Events of jobs from {first}.")


def add_part(name: str, bound: str, comment: str) -> None:
    op.execute(
        f"CREATE TABLE loracomp_parts.{name} (LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY, PRIMARY KEY (id))"
    )
    op.execute(f"ALTER TABLE loracomp_parts.{name} ENABLE ROW LEVEL SECURITY")
    op.execute(f"COMMENT ON TABLE loracomp_parts.{name} IS '{comment}'")
    op.execute(f"ALTER TABLE loracomp_parts.audit_event_jobs ATTACH PARTITION loracomp_parts.{name} {bound}")


def downgrade() -> None:
    event = op.get_bind().scalar(sa.text(NEXT_EVENT))
    # A schema of its own, because names of indexes are taken in the other two.
    op.execute("CREATE SCHEMA loracomp_partitioned")
    op.execute("ALTER TABLE loracomp.audit_event SET SCHEMA loracomp_partitioned")
    op.execute("ALTER TABLE loracomp_partitioned.audit_event ALTER COLUMN id DROP IDENTITY")
    make_like("loracomp_partitioned.audit_event", "", COMMENT, event)
    op.execute("ALTER TABLE loracomp.audit_event ADD PRIMARY KEY (id)")
    op.execute(
        "INSERT INTO loracomp.audit_event OVERRIDING SYSTEM VALUE SELECT * FROM loracomp_partitioned.audit_event ORDER BY id"
    )
    op.execute("DROP TABLE loracomp_partitioned.audit_event")
    op.execute("DROP SCHEMA loracomp_partitioned")


def make_like(old: str, kind: str, comment: str, event: int) -> None:
    """Make audit_event with everything that the old table has but its rows and key; the next event gets this number."""
    op.execute(f"CREATE TABLE loracomp.audit_event (LIKE {old} INCLUDING ALL EXCLUDING INDEXES) {kind}")
    op.execute(f"ALTER TABLE loracomp.audit_event DROP CONSTRAINT IF EXISTS {CHECK}")
    op.execute(
        f"ALTER TABLE loracomp.audit_event ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (START WITH {event})"
    )
    op.execute(f"COMMENT ON TABLE loracomp.audit_event IS '{comment}'")
    for statement in op.get_bind().scalars(sa.text(ADDED.format(old=old, new="loracomp.audit_event"))).all():
        op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
