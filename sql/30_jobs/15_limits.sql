-- Limits on the number of waiting jobs.
--   set_queue_limits            sets the two limits: for all jobs, and for each submitter
--   trigger admit_jobs          refuses an insert that exceeds a limit
--     check_room                raises if a limit is exceeded; retry_job calls it too
--       has_room                counts the queue only if the stored count is not certain enough
--         count_queued

-- Sets the two limits; jobs that already wait are not affected. null: no limit. -1: keep the limit.
CREATE FUNCTION loracomp.set_queue_limits(in_all bigint DEFAULT -1, per_submitter bigint DEFAULT -1) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UPDATE loracomp.queue_limit AS l
    SET
        in_all = CASE WHEN set_queue_limits.in_all = -1 THEN l.in_all ELSE set_queue_limits.in_all END,
        per_submitter = CASE
            WHEN set_queue_limits.per_submitter = -1 THEN l.per_submitter ELSE set_queue_limits.per_submitter
        END;
    PERFORM setval('loracomp.queue_full_until', 0);
END
$$;
COMMENT ON FUNCTION loracomp.set_queue_limits IS
'Sets how many jobs may wait: in total (not counting evaluations) and of each submitter. null: no limit; -1: unchanged.';

-- Refuses a whole INSERT if it exceeds a limit of set_queue_limits. Administrators are not limited. Statements that run at the
-- same moment don't see each other's jobs, so together they may exceed a limit.
CREATE FUNCTION loracomp.admit_jobs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    limits loracomp.queue_limit;
    submitter name;
    newest bigint;
BEGIN
    SELECT * INTO limits FROM loracomp.queue_limit;
    IF num_nonnulls(limits.in_all, limits.per_submitter) = 0 OR loracomp.caller_is_admin() THEN
        RETURN NULL;
    END IF;
    SELECT max(n.id) INTO newest FROM new_job AS n;
    IF newest IS NULL THEN
        RETURN NULL;
    END IF;
    -- The submitter is read from the rows: in a function with its owner's rights, current_user would be the owner.
    FOR submitter IN SELECT DISTINCT n.submitted_by FROM new_job AS n LOOP
        PERFORM loracomp.check_room(submitter, limits, newest);
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.admit_jobs IS 'Trigger: refuses jobs that would exceed a limit of the queue.';

CREATE TRIGGER admit_jobs AFTER INSERT ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.admit_jobs();
COMMENT ON TRIGGER admit_jobs ON loracomp.job IS 'Refuses jobs that would exceed a limit of the queue.';

-- Raises if more jobs wait than the limits allow, of the submitter or in total. newest is the highest id of the jobs that were
-- just inserted; null means that an old job was queued again, so that ids don't help and the queue must be counted.
CREATE FUNCTION loracomp.check_room(submitter name, limits loracomp.queue_limit, newest bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF NOT loracomp.has_room(submitter, limits.per_submitter, newest) THEN
        PERFORM nextval('loracomp.refused_inserts');
        RAISE EXCEPTION 'at most % of % jobs may wait, and this would be more', limits.per_submitter,
            CASE submitter WHEN loracomp.caller() THEN 'your' ELSE format('%s''s', submitter) END
            USING ERRCODE = 'configuration_limit_exceeded', CONSTRAINT = 'your_share_of_the_queue_is_full',
                HINT = 'wait until some are answered, cancel jobs that are not needed (loracomp.cancel_jobs), or ask an '
                    'administrator for more (loracomp.set_queue_limits)';
    END IF;
    IF NOT loracomp.has_room('', limits.in_all, newest) THEN
        PERFORM nextval('loracomp.refused_inserts');
        RAISE EXCEPTION 'at most % jobs may wait, of all submitters together, and this would be more', limits.in_all
            USING ERRCODE = 'configuration_limit_exceeded', CONSTRAINT = 'the_queue_is_full',
                HINT = 'try again later (loracomp.queue_health shows how long the queue is), or ask an administrator for '
                    'more workers or for loracomp.set_queue_limits';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_room IS
'Raises if more jobs wait than the limits allow. For admit_jobs and retry_job.';

-- Whether at most max_queued jobs wait, of a submitter or (empty name) in total, including the newest job, which is not committed
-- yet. It counts the queue, and stores the count, only if the stored count plus all later ids exceeds the limit.
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
    -- Retried jobs are queued again without a new id, so a stored count is used for at most a minute.
    IF has_room.newest IS NOT NULL AND last.queued + greatest(has_room.newest - last.last_id, 0) <= has_room.max_queued
        AND last.counted_at > clock_timestamp() - interval '1 minute'
    THEN
        RETURN TRUE;
    END IF;
    IF has_room.submitter = '' AND milliseconds < (SELECT s.last_value FROM loracomp.queue_full_until AS s) THEN
        RETURN FALSE;
    END IF;
    counted := loracomp.count_queued(has_room.submitter, has_room.max_queued + 1);
    IF counted > has_room.max_queued THEN
        -- The refused INSERT is rolled back, but setval is not, so the next INSERTs know without counting that the queue is full.
        -- It is considered full for ten microseconds per counted job, at least ten times as long as counting takes.
        IF has_room.submitter = '' THEN
            PERFORM setval('loracomp.queue_full_until', milliseconds + least(counted / 100, 10000));
        END IF;
        RETURN FALSE;
    END IF;
    -- If another session is storing a count at the same moment, this count is not stored. Only at read committed, because in other
    -- isolation levels the update could fail.
    IF has_room.newest IS NOT NULL AND current_setting('transaction_isolation') = 'read committed' THEN
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
COMMENT ON FUNCTION loracomp.has_room IS 'Whether a limit of the queue still holds after the jobs just inserted. For check_room.';

-- Reads only: the queue's indexes, until at_most jobs are counted; 100,000 take 20 to 50 ms. Scheduled jobs have their own partial
-- index, so each half needs a condition on `scheduled`. Jobs of evaluations and of kind measure don't count against the limit in all.
CREATE FUNCTION loracomp.count_queued(submitter name, at_most bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
-- The plan is forced, because statistics lag behind a queue.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
BEGIN
    RETURN (
        SELECT count(*) FROM (
            SELECT FROM (
                SELECT j.submitted_by, j.evaluation, j.kind FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
                UNION ALL
                SELECT j.submitted_by, j.evaluation, j.kind FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled
            ) AS q
            WHERE CASE count_queued.submitter
                WHEN '' THEN q.evaluation IS NULL AND q.kind <> 'measure' ELSE q.submitted_by = count_queued.submitter
            END
            LIMIT count_queued.at_most
        ) AS c
    );
END
$$;
COMMENT ON FUNCTION loracomp.count_queued IS
'Number of waiting jobs of a submitter; with an empty name of all submitters, without evaluations and kind measure. It stops '
'counting at at_most.';
