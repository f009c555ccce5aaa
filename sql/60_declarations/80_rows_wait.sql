-- Reads only. A worker with --drain waits until this is false. A declaration that needs a person to repair its table doesn't count. One that is
-- tried again within a second does, because its table may just be locked by VACUUM.
CREATE FUNCTION loracomp.rows_wait() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET jit = off
AS $$
    SELECT EXISTS (SELECT FROM loracomp.ended_job) OR EXISTS (
        SELECT FROM loracomp.declaration AS a
        WHERE NOT a.paused AND (a.trouble IS NULL OR a.retry_at < clock_timestamp() + interval '1.5 seconds') AND (
            a.scan IS NOT NULL OR loracomp.must_scan(a) OR loracomp.must_ask_corrected(a)
            OR EXISTS (
                SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = a.id AND h.written_in >= a.hints_from
            )
        )
    ) OR EXISTS (
        SELECT FROM loracomp.declaration AS a JOIN loracomp.base_model AS b ON b.is_default
        WHERE a.measure_at <= clock_timestamp() AND loracomp.has_unmeasured(a.task_id, b.id)
    );
$$;
COMMENT ON FUNCTION loracomp.rows_wait IS
'Whether rows of declarations wait to be asked, their answers to be shown, or their corrections to be measured.';
