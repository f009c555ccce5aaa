-- Limits on the number of waiting jobs.
--   set_queue_limits            sets the two limits: for all jobs, and for each submitter
--   trigger admit_jobs          refuses an insert that exceeds a limit
--     check_room                raises if a limit is exceeded; retry_job calls it too
--       has_room                counts the queue only if the last count leaves it open
--         count_queued

-- Sets the two limits; jobs that already wait are not affected. null: no limit. -1: keep the limit.
CREATE FUNCTION loracomp.set_queue_limits(in_all bigint DEFAULT -1, per_submitter bigint DEFAULT -1) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UPDATE loracomp.queue_limit AS l SET
        in_all = CASE set_queue_limits.in_all WHEN -1 THEN l.in_all ELSE set_queue_limits.in_all END,
        per_submitter = CASE set_queue_limits.per_submitter WHEN -1 THEN l.per_submitter ELSE set_queue_limits.per_submitter END;
    PERFORM loracomp.make_counter('loracomp_parts.room_' || md5('')); -- a refused INSERT would undo it
    PERFORM setval(c.oid, 0) FROM pg_class AS c
    WHERE c.relnamespace = 'loracomp_parts'::regnamespace AND c.relname LIKE 'room\_%';
END
$$;
COMMENT ON FUNCTION loracomp.set_queue_limits IS
'Sets how many jobs may wait: in total (not counting evaluations) and of each submitter. null: no limit; -1: unchanged.';

-- Refuses a whole INSERT if it exceeds a limit of set_queue_limits. Administrators' jobs are not limited. Statements that run at the
-- same moment don't see each other's jobs, so together they may exceed a limit. The submitter is read from the rows, because a worker
-- inserts the jobs of declarations in the name of their owners.
CREATE FUNCTION loracomp.admit_jobs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM loracomp.queue_limit AS l WHERE num_nonnulls(l.in_all, l.per_submitter) > 0) THEN
        PERFORM loracomp.check_room(n.submitted_by, max(n.id)) FROM new_job AS n
        GROUP BY n.submitted_by HAVING NOT loracomp.may_read(n.submitted_by, 'loracomp_admin');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.admit_jobs IS 'Trigger: refuses jobs that would exceed a limit of the queue.';

CREATE TRIGGER admit_jobs AFTER INSERT ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.admit_jobs();

-- Raises if more jobs wait than the limits allow, of the submitter or in total. newest is the highest id of the jobs that were
-- just inserted; null means that an old job was queued again.
CREATE FUNCTION loracomp.check_room(submitter name, newest bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    limits loracomp.queue_limit;
BEGIN
    SELECT * INTO limits FROM loracomp.queue_limit;
    IF NOT loracomp.has_room(submitter, limits.per_submitter, newest) THEN
        PERFORM nextval('loracomp.refused_inserts');
        RAISE EXCEPTION 'at most % of % jobs may wait, and this would be more', limits.per_submitter,
            CASE submitter WHEN loracomp.caller() THEN 'your' ELSE format('%s''s', submitter) END
            USING ERRCODE = 'configuration_limit_exceeded', CONSTRAINT = 'your_share_of_the_queue_is_full',
                HINT = 'wait until some are answered, cancel jobs that are not needed (loracomp.cancel_jobs), or ask an '
                    'administrator for more (loracomp.set_queue_limits)';
    ELSIF NOT loracomp.has_room('', limits.in_all, newest) THEN
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

-- Whether at most max_queued jobs wait, of a submitter or (empty name) in total, with the newest, which is not committed yet. A sequence
-- remembers the last count, although a refused INSERT is undone: the id up to which there is room at any rate, as each job uses one; or,
-- negative, the time in milliseconds until which the queue counts as full: ten microseconds for each job, ten times as long as counting takes.
-- Running jobs that are queued again without a new id may exceed a limit until the next count.
CREATE FUNCTION loracomp.has_room(submitter name, max_queued bigint, newest bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    memory CONSTANT regclass := loracomp.make_counter('loracomp_parts.room_' || md5(submitter));
    last CONSTANT bigint := pg_sequence_last_value(memory);
    now_ms CONSTANT bigint := 1000 * extract(EPOCH FROM clock_timestamp());
    counted bigint;
BEGIN
    IF max_queued IS NULL OR newest <= last THEN
        RETURN TRUE;
    ELSIF -last > now_ms THEN
        RETURN FALSE;
    END IF;
    counted := loracomp.count_queued(submitter, max_queued + 1);
    PERFORM setval(memory, CASE
        WHEN counted > max_queued THEN -now_ms - least(counted / 100, 10000) ELSE coalesce(newest + max_queued - counted, 0)
    END);
    RETURN counted <= max_queued;
END
$$;
COMMENT ON FUNCTION loracomp.has_room IS 'Whether a limit of the queue still holds after the jobs just inserted. For check_room.';

-- Reads only: the queue's indexes, until at_most jobs are counted; 100,000 take 20 to 50 ms. Scheduled jobs have their own partial
-- index. Jobs of evaluations and of kind measure don't count against the limit in all. The plan is forced, because statistics lag behind.
CREATE FUNCTION loracomp.count_queued(submitter name, at_most bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    SELECT count(*) FROM (
        SELECT FROM (
            SELECT j.submitted_by, j.evaluation, j.kind FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
            UNION ALL
            SELECT j.submitted_by, j.evaluation, j.kind FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled
        ) AS q
        WHERE CASE submitter WHEN '' THEN q.evaluation IS NULL AND q.kind <> 'measure' ELSE q.submitted_by = submitter END
        LIMIT at_most
    ) AS c;
$$;
COMMENT ON FUNCTION loracomp.count_queued IS
'Number of waiting jobs of a submitter; with an empty name of all submitters, without evaluations and kind measure. It stops '
'counting at at_most.';
