-- A scan waits for open transactions that have written to its table before alter_answers added a column or loracomp was upgraded, because these may
-- not have noted the rows that they have changed. ask_rows calls both.
--   begin_waits         notes which transactions scans of altered declarations wait for
--   end_waits           lets the scans begin once these have ended

-- A transaction that gets its id after this one sees the altered columns, provided that this one got its id after the alteration was committed. It
-- gets it when it locks the first declaration, so a declaration must be the one that this statement saw before; others are left to the next call.
CREATE FUNCTION loracomp.begin_waits() RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    WITH altered AS MATERIALIZED (
        SELECT a.id, a.xmin AS version FROM loracomp.declaration AS a WHERE a.scan_after = 0 AND pg_current_xact_id_if_assigned() IS NULL
    ),
    free AS MATERIALIZED (
        SELECT a.id FROM altered AS s JOIN loracomp.declaration AS a ON a.id = s.id AND a.xmin = s.version FOR NO KEY UPDATE OF a SKIP LOCKED
    )
    UPDATE loracomp.declaration AS a SET scan_after = pg_current_xact_id()::text::bigint FROM free AS f WHERE a.id = f.id;
$$;
COMMENT ON FUNCTION loracomp.begin_waits IS
'Notes for each altered declaration from which transaction on all see its columns: its scan waits for those before. For ask_rows.';

-- A transaction keeps its lock on a table to which it has written, also while it is prepared. The locks are asked which transactions are open, because a
-- snapshot doesn't list the latest of them. They are read once for all declarations, because anybody may hold ten thousand.
CREATE FUNCTION loracomp.end_waits() RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    WITH writer AS MATERIALIZED (
        SELECT l.relation, age(w.transactionid) AS age
        FROM pg_locks AS w
        JOIN pg_locks AS l ON l.virtualtransaction = w.virtualtransaction AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
        WHERE w.locktype = 'transactionid' AND w.mode = 'ExclusiveLock'
            AND l.database = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
            AND EXISTS (SELECT FROM loracomp.declaration AS a WHERE a.scan_after > 0)
    ),
    written AS MATERIALIZED (
        SELECT o.source, max(o.age) AS age
        FROM (
            SELECT w.relation AS source, w.age FROM writer AS w
            UNION ALL SELECT p.relid, w.age FROM writer AS w CROSS JOIN LATERAL pg_partition_ancestors(w.relation) AS p (relid)
        ) AS o
        GROUP BY o.source
    ),
    free AS MATERIALIZED (
        SELECT a.id FROM loracomp.declaration AS a LEFT JOIN written AS w ON w.source = a.source
        WHERE a.scan_after > 0 AND (w.age > age(a.scan_after::text::xid8::xid)) IS NOT TRUE FOR NO KEY UPDATE OF a SKIP LOCKED
    )
    UPDATE loracomp.declaration AS a SET scan_after = NULL FROM free AS f WHERE a.id = f.id;
$$;
COMMENT ON FUNCTION loracomp.end_waits IS
'Ends the waiting of declarations for open transactions that have written to the table before alter_answers added a column or loracomp was '
'upgraded, once these have ended. For ask_rows.';
