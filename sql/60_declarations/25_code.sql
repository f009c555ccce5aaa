-- Keeps code of a table's owner from running in a worker's session.
--   lock_code           locks a table and checks it, before its rows are read; follow_source and read_as_owner call it
--     lock_table        24_locks.sql
--     check_code        refuses tables with such code; check_source calls it too

-- The lock is the one that VACUUM takes: until the transaction ends, nobody can add such code, and writers don't wait. It isn't taken if the owner may
-- act as loracomp's owner anyway. A transaction with another isolation level than READ COMMITTED reads what the table was before the lock, so it
-- wouldn't see code that was added since, but Postgres would run it. A person's call waits for the lock for longer than deadlock_timeout, even if the
-- caller's lock_timeout is shorter, because autovacuum then gives way. Without a lock_timeout it waits for ten seconds, because others may wait for
-- what it has locked before. The timeout applies until read_as_owner ends, because the owner may also lock an index. The keeper doesn't wait,
-- because one table must not hold up the others, and because autovacuum would never finish if it gave way to each new row.
CREATE FUNCTION loracomp.lock_code(source regclass, waits boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    relation CONSTANT pg_class := (SELECT c FROM pg_class AS c WHERE c.oid = lock_code.source);
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'table % belongs to another role, so it can''t be read with isolation level %', lock_code.source,
            current_setting('transaction_isolation')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'call this with isolation level read committed';
    END IF;
    IF NOT pg_has_role(relation.relowner, current_user, 'usage') THEN
        PERFORM set_config('lock_timeout', greatest(coalesce(nullif(s.setting::integer, 0), 10000), loracomp.patience_ms())::text, TRUE)
        FROM pg_settings AS s WHERE lock_code.waits AND s.name = 'lock_timeout';
        PERFORM loracomp.lock_table(
            lock_code.source, concat('SHARE UPDATE EXCLUSIVE MODE', CASE WHEN NOT waits THEN ' NOWAIT' END), with_parts => relation.relkind = 'p'
        );
    END IF;
    PERFORM loracomp.check_code(lock_code.source);
EXCEPTION WHEN lock_not_available THEN
    IF NOT waits THEN
        RAISE;
    END IF;
    RAISE EXCEPTION 'table % is being vacuumed or analyzed, or gets an index', lock_code.source
        USING ERRCODE = 'lock_not_available', HINT = 'try again when that has ended';
END
$$;
COMMENT ON FUNCTION loracomp.lock_code IS
'Locks a table against new code of its owner, and raises if reading it may call functions that are not owned by a superuser.';

-- To plan a query, Postgres may call functions that the table's indexes, statistics and constraints name, and functions behind what they name: those of
-- an operator's commutator and negator, which its owner may add at any time, and the subtype_diff of a range type, which may be an element of a
-- column's type. If row security is forced on the owner, it also calls functions in the policies. Such a function would run in a worker's session and
-- could change its settings.
CREATE FUNCTION loracomp.check_code(source regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    relation CONSTANT pg_class := (SELECT c FROM pg_class AS c WHERE c.oid = check_code.source);
    tables oid[];
    problem text;
BEGIN
    tables := ARRAY(SELECT relation.oid UNION SELECT p.part FROM loracomp.parts_of(relation.oid) AS p);
    WITH RECURSIVE named (catalog, oid) AS (
        SELECT o.catalog, o.oid
        FROM unnest(tables) AS t (oid)
        CROSS JOIN LATERAL (
            SELECT 'pg_class'::regclass AS catalog, t.oid
            UNION ALL SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i WHERE i.indrelid = t.oid
            UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint AS c WHERE c.conrelid = t.oid
            UNION ALL SELECT 'pg_statistic_ext'::regclass, s.oid FROM pg_statistic_ext AS s WHERE s.stxrelid = t.oid
        ) AS o
        UNION
        SELECT o.catalog, o.oid
        FROM named AS n
        CROSS JOIN LATERAL (
            SELECT u.refclassid::regclass AS catalog, u.refobjid AS oid FROM pg_depend AS u
            WHERE u.classid = n.catalog AND u.objid = n.oid AND u.refclassid IN ('pg_type'::regclass, 'pg_operator'::regclass)
            UNION ALL SELECT 'pg_class'::regclass, t.typrelid FROM pg_type AS t
            WHERE n.catalog = 'pg_type'::regclass AND t.oid = n.oid AND t.typrelid <> 0
        ) AS o
    )
    SELECT CASE
        WHEN count(c.name) > 0 THEN format(
            'an index, statistics, a constraint or a type calls %s: drop it, or let a superuser own what it calls',
            string_agg(DISTINCT c.name, ', ')
        )
        WHEN relation.relforcerowsecurity THEN 'it forces its policies on its owner: ALTER TABLE ... NO FORCE ROW LEVEL SECURITY'
        WHEN EXISTS (SELECT FROM pg_class AS c WHERE c.oid = ANY (tables) AND c.relkind NOT IN ('r', 'p'))
            THEN 'foreign tables are its partitions: detach them'
    END INTO problem
    FROM named AS n
    CROSS JOIN LATERAL (
        SELECT p.oid::regprocedure::text AS name, p.proowner AS owner
        FROM pg_depend AS u JOIN pg_proc AS p ON p.oid = u.refobjid
        WHERE u.classid = n.catalog AND u.objid = n.oid AND u.refclassid = 'pg_proc'::regclass
        UNION ALL SELECT r.oid::regoperator::text, r.oprowner FROM pg_operator AS r
        WHERE n.catalog = 'pg_operator'::regclass AND r.oid = n.oid
    ) AS c
    WHERE NOT (SELECT o.rolsuper FROM pg_roles AS o WHERE o.oid = c.owner);
    IF problem IS NOT NULL THEN
        -- Another code than what read_prompts takes for the fault of a row.
        RAISE EXCEPTION 'table % can''t be read: %', check_code.source, problem USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_code IS 'Raises if reading a table may call functions that are not owned by a superuser.';
