-- Locks on users' tables, for which writers wait.
--   lock_tables         locks tables for two seconds at most, or raises; lock_source and drop_answers call it
--     patience_ms       lock_code calls it too
--     lock_table        lock_code calls it too

-- Reads only the catalog.
CREATE FUNCTION loracomp.patience_ms() RETURNS integer
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT s.setting::integer + 500 FROM pg_settings AS s WHERE s.name = 'deadlock_timeout';
$$;
COMMENT ON FUNCTION loracomp.patience_ms IS
'For how many milliseconds a call waits for a lock on a user''s table: a little longer than deadlock_timeout, after which autovacuum gives way.';

-- Postgres locks a table by its name. While a call waits for the lock, the owner may give that name to another table, which would be locked instead.
CREATE FUNCTION loracomp.lock_table(source regclass, mode text, with_parts boolean DEFAULT FALSE) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    source_name CONSTANT text := lock_table.source;
BEGIN
    EXECUTE format('LOCK TABLE %s %s IN %s', CASE WHEN NOT with_parts THEN 'ONLY' END, source_name, mode);
    IF to_regclass(source_name) IS DISTINCT FROM lock_table.source THEN
        RAISE EXCEPTION 'table % was renamed meanwhile', source_name USING ERRCODE = 'object_in_use', HINT = 'try again';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.lock_table IS
'Locks a table, and its partitions if they are asked for, until the transaction ends. Raises if the table was renamed while the call waited.';

-- Whoever wants to write waits behind this call. If two transactions wait for each other, Postgres cancels the one that has waited for deadlock_timeout
-- first. That is this call, or it has given up before, so the application's statement doesn't fail.
CREATE FUNCTION loracomp.lock_tables(tables regclass[], mode text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = 0
AS $$
DECLARE
    until CONSTANT timestamptz := clock_timestamp() + loracomp.patience_ms() * interval '1 ms';
    next regclass;
BEGIN
    FOREACH next IN ARRAY tables LOOP
        PERFORM set_config('lock_timeout', greatest(1, extract(EPOCH FROM until - clock_timestamp()) * 1000)::integer::text, TRUE);
        PERFORM loracomp.lock_table(next, mode || ' MODE');
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.lock_tables IS
'Locks tables until the transaction ends. Raises lock_not_available or deadlock_detected if others keep them locked.';
