-- Rows of declared tables that wait for their jobs.
--   rows_wait             whether there are any; workers with --drain and worker_demand ask
--   rows_without_job      how many there are, by declaration; worker_demand calls it too
--     rows_to_scan        75_list.sql
--   count_rows_waiting    how many there are in all; queue_health and database_metrics call it

-- Reads only. A worker with --drain waits until this is false; worker_demand calls it too. A declaration whose rows can't be asked, or whose
-- corrections can't be measured, counts only if it is tried again within `soon`. --drain waits for a second attempt soon, because VACUUM may have
-- locked the table for a moment, but not for later ones, because the trouble may need a person.
CREATE FUNCTION loracomp.rows_wait(soon interval DEFAULT '1.5 seconds') RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET jit = off
AS $$
    SELECT EXISTS (SELECT FROM loracomp.ended_job) OR EXISTS (
        SELECT FROM loracomp.declaration AS a
        WHERE NOT a.paused AND (a.trouble IS NULL OR a.retry_at < clock_timestamp() + rows_wait.soon) AND (
            a.scan IS NOT NULL OR loracomp.must_scan(a) OR loracomp.must_ask_corrected(a)
            OR EXISTS (
                SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from
            )
            OR EXISTS (SELECT FROM loracomp.withdrawn_example AS w WHERE w.declaration_id = a.id)
            OR loracomp.source_has_changed(a)
            OR loracomp.parts_are_due(a) AND loracomp.parts_hash(a.source) <> a.parts
        )
    ) OR EXISTS (
        SELECT FROM loracomp.declaration AS a JOIN loracomp.base_model AS b ON b.is_default
        WHERE NOT a.paused AND a.measure_at < clock_timestamp() + rows_wait.soon AND loracomp.has_unmeasured(a.task_id, b.id)
    );
$$;
COMMENT ON FUNCTION loracomp.rows_wait IS
'Whether rows of declarations wait for their jobs, for their answers to be shown, or for their corrections to be measured.';

-- Reads only. A row that was written has a hint.
CREATE FUNCTION loracomp.rows_without_job()
RETURNS TABLE (declaration_id integer, written bigint, to_scan bigint, is_in_trouble boolean)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT
        a.id, (SELECT count(*) FROM loracomp.answer_hint AS h WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from),
        loracomp.rows_to_scan(a), a.trouble IS NOT NULL
    FROM loracomp.declaration AS a WHERE NOT a.paused;
$$;
COMMENT ON FUNCTION loracomp.rows_without_job IS
'For each declaration that is not paused, how many rows were written and have no job yet, and an estimate of how many its scan has still to handle.';

CREATE FUNCTION loracomp.count_rows_waiting() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    -- Rows that were written during a scan may be counted in both.
    SELECT coalesce(sum(greatest(r.written, r.to_scan)), 0)::bigint FROM loracomp.rows_without_job() AS r;
$$;
COMMENT ON FUNCTION loracomp.count_rows_waiting IS 'Estimated number of rows of all declared tables that have no job yet.';
