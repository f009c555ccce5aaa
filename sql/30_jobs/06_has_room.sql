-- drop: DROP FUNCTION IF EXISTS loracomp.has_room(name, bigint, bigint)
-- Whether no more than max_queued jobs wait, of a submitter or (the empty name) of all, up to the newest, which is not
-- committed yet. Counts the queue only where the last count, and every job since, might not fit; notes what it counted.
CREATE FUNCTION loracomp.has_room(submitter name, max_queued bigint, newest bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    last loracomp.queue_count;
    counted bigint;
    milliseconds CONSTANT bigint := 1000 * extract(EPOCH FROM clock_timestamp());
BEGIN
    IF has_room.max_queued IS NULL THEN
        RETURN TRUE;
    END IF;
    SELECT * INTO last FROM loracomp.queue_count AS c WHERE c.submitted_by = has_room.submitter;
    -- Retries come back without a new id: after a minute the last count is worth nothing.
    IF last.queued + greatest(has_room.newest - last.last_id, 0) <= has_room.max_queued
        AND last.counted_at > clock_timestamp() - interval '1 minute'
    THEN
        RETURN TRUE;
    END IF;
    IF has_room.submitter = '' AND milliseconds < (SELECT s.last_value FROM loracomp.queue_full_until AS s) THEN
        RETURN FALSE;
    END IF;
    counted := loracomp.count_queued(has_room.submitter, has_room.max_queued + 1);
    IF counted > has_room.max_queued THEN
        -- A refusal is rolled back with all that it wrote, but a sequence is not. Not counted again for ten microseconds a
        -- job, ten times and more what counting takes.
        IF has_room.submitter = '' THEN
            PERFORM setval('loracomp.queue_full_until', milliseconds + least(counted / 100, 10000));
        END IF;
        RETURN FALSE;
    END IF;
    -- Whoever counts at the same moment does not wait to note it. In other isolation levels noting might fail.
    IF current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM FROM loracomp.queue_count AS c WHERE c.submitted_by = '' FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND THEN
            INSERT INTO loracomp.queue_count AS c (submitted_by, queued, last_id)
            VALUES (has_room.submitter, counted, has_room.newest)
            ON CONFLICT ON CONSTRAINT queue_count_pkey DO UPDATE SET
                queued = excluded.queued, last_id = excluded.last_id, counted_at = excluded.counted_at;
        END IF;
    END IF;
    RETURN TRUE;
END
$$;
COMMENT ON FUNCTION loracomp.has_room IS 'Whether a limit of the queue holds with the jobs just inserted. For admit_jobs.';
