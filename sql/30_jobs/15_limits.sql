-- How many jobs may wait.
--   set_queue_limits            sets the two limits: of all, and of each submitter
--   trigger admit_jobs          refuses an insert that does not fit
--     check_room                raises where there is no room; retry_job calls it too
--       has_room                counts only where the last count may be out of date
--         count_queued

-- Sets the limits that are given; what waits already stays. null: no limit. -1: the limit stays as it is.
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
'Sets how many jobs may wait in all, evaluations apart, and of each submitter; null: any number; -1: as it is.';

-- Refuses a statement whose jobs do not fit into the queue, whole: set_queue_limits says how many may wait. Administrators'
-- jobs are not bound. What others insert at the same moment may go beyond a limit by as much.
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
    -- The rows say whose they are: a function with its owner's rights inserts as that owner, whoever calls it.
    FOR submitter IN SELECT DISTINCT n.submitted_by FROM new_job AS n LOOP
        PERFORM loracomp.check_room(submitter, limits, newest);
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.admit_jobs IS 'Trigger: refuses jobs for which the queue has no room.';

CREATE TRIGGER admit_jobs AFTER INSERT ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.admit_jobs();
COMMENT ON TRIGGER admit_jobs ON loracomp.job IS 'Refuses what does not fit into the queue.';

-- Raises if more jobs wait than the limits allow, of the submitter or of all. newest is the highest id of the jobs that were
-- just inserted. null means that a job came back under its old id, so that ids say nothing, and the queue must be counted.
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
                HINT = 'wait until some are answered, cancel those that are not needed (loracomp.cancel_job), or ask an '
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
'Raises where more jobs wait than the limits allow. For admit_jobs and retry_job.';

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
        -- The INSERT that is refused is rolled back, but setval is not: so the next INSERTs know without counting that the
        -- queue is full. That holds for ten microseconds per counted job, at least ten times as long as counting takes.
        IF has_room.submitter = '' THEN
            PERFORM setval('loracomp.queue_full_until', milliseconds + least(counted / 100, 10000));
        END IF;
        RETURN FALSE;
    END IF;
    -- Whoever counts at the same moment does not wait to note it. In other isolation levels noting might fail.
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
COMMENT ON FUNCTION loracomp.has_room IS 'Whether a limit of the queue holds with the jobs just inserted. For check_room.';

-- Reads only, and of the queue's indexes no more than at_most entries: 100,000 take 20 to 50 milliseconds. Jobs for later
-- stand in an index of their own: a query that says nothing of `scheduled` could use neither.
CREATE FUNCTION loracomp.count_queued(submitter name, at_most bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
-- Always the same plan: statistics lag behind a queue.
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    in_the_background bigint;
BEGIN
    IF count_queued.submitter <> '' THEN
        RETURN (
            SELECT count(*) FROM (
                SELECT FROM loracomp.base_model AS b
                CROSS JOIN LATERAL (
                    SELECT FROM loracomp.job AS j
                    WHERE j.status = 'queued' AND NOT j.scheduled
                        AND j.base_model = b.name AND j.submitted_by = count_queued.submitter
                    LIMIT count_queued.at_most
                ) AS j
                UNION ALL
                SELECT FROM loracomp.job AS j
                WHERE j.status = 'queued' AND j.scheduled AND j.submitted_by = count_queued.submitter
                LIMIT count_queued.at_most
            ) AS q
        );
    END IF;
    -- They wait behind all others, so they do not count against the limit.
    SELECT count(*) INTO in_the_background
    FROM (
        SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
            AND (j.evaluation IS NOT NULL OR j.kind = 'measure')
        UNION ALL
        SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled
            AND (j.evaluation IS NOT NULL OR j.kind = 'measure')
    ) AS e;
    RETURN (
        SELECT count(*) - in_the_background FROM (
            SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
            UNION ALL
            SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled
            LIMIT count_queued.at_most + in_the_background
        ) AS q
    );
END
$$;
COMMENT ON FUNCTION loracomp.count_queued IS
'Waiting jobs of a submitter, or with an empty name of all but those that evaluate or measure; no more than at_most are counted.';
