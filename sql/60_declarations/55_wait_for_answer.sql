-- Waits for the answer to a row.
--   wait_for_answer
--     check_wait            10_values/10_values.sql

-- It reads the declaration's view with the caller's rights, so whoever may read the view may wait. As in wait_for_job, each turn of the loop
-- takes a new snapshot. The key is converted without the column's length, which would make a longer key the key of another row. A row that this
-- transaction has written gets its job only after COMMIT; whether it has written this row is not known here.
CREATE FUNCTION loracomp.wait_for_answer(name regclass, key text, timeout interval DEFAULT '30 seconds')
RETURNS TABLE (status text, answer text, confidence double precision, reason text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_column CONSTANT pg_attribute := (
        SELECT a FROM pg_attribute AS a WHERE a.attrelid = wait_for_answer.name AND a.attnum = 1
    );
    until timestamptz;
    pause double precision := 0.02;
BEGIN
    PERFORM loracomp.check_wait(wait_for_answer.timeout);
    until := clock_timestamp() + wait_for_answer.timeout;
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE (a.attrelid, a.attnum, a.attname) = (wait_for_answer.name, 2, 'answer')) THEN
        RAISE EXCEPTION '% is not a view of answers whose key has one column', wait_for_answer.name
            USING ERRCODE = 'invalid_parameter_value', HINT = 'list_answers names the views; if the key has several columns, read the view';
    END IF;
    LOOP
        EXECUTE format(
            'SELECT v.status, v.answer, v.confidence, v.reason FROM %s AS v WHERE v.%I = CAST($1 AS %s)', wait_for_answer.name,
            key_column.attname, CASE key_column.atttypid WHEN 'name'::regtype THEN 'text' ELSE format_type(key_column.atttypid, -1) END
        ) INTO status, answer, confidence, reason USING wait_for_answer.key;
        IF status IS NULL THEN
            RAISE EXCEPTION '% has no row %', wait_for_answer.name, wait_for_answer.key USING ERRCODE = 'no_data_found';
        END IF;
        EXIT WHEN status NOT IN ('waiting', 'stale') OR clock_timestamp() >= until;
        IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
            RAISE EXCEPTION 'this transaction has written something, and rows that it has written are answered only once it is committed'
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'COMMIT, then wait';
        END IF;
        PERFORM pg_sleep(least(pause, extract(EPOCH FROM until - clock_timestamp())));
        pause := least(pause * 1.5, 0.5);
    END LOOP;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION loracomp.wait_for_answer(regclass, text, interval) IS
'Waits until a row of a declared table needs no answer any more, or the timeout (5 minutes at most) is over, and returns what the view shows.';

CREATE FUNCTION loracomp.wait_for_answer(name regclass, key bigint, timeout interval DEFAULT '30 seconds')
RETURNS TABLE (status text, answer text, confidence double precision, reason text)
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT * FROM loracomp.wait_for_answer(wait_for_answer.name, wait_for_answer.key::text, wait_for_answer.timeout);
END;
COMMENT ON FUNCTION loracomp.wait_for_answer(regclass, bigint, interval) IS 'The same for a key that is a number.';
