-- The limit on how many jobs of one submitter may wait.
--   set_queue_limits            sets it
--   trigger admit_jobs          refuses an insert that exceeds it
--     is_within_limit           whether it does not; retry_job calls it too
--       count_queued            only if the last count does not decide
--     return_places             18_places.sql
--     refuse_job                raises the error; retry_job calls it too
--   left_to_limit               how many more jobs may wait; ask_page calls it

-- Sets the limit; jobs that already wait are not affected. null: no limit.
CREATE FUNCTION loracomp.set_queue_limits(per_submitter bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
BEGIN ATOMIC
    UPDATE loracomp.queue_limit AS l SET per_submitter = set_queue_limits.per_submitter;
END;
COMMENT ON FUNCTION loracomp.set_queue_limits IS 'Sets how many jobs of each submitter may wait; null: any number.';

-- Refuses the whole INSERT if it exceeds the limit. Administrators' jobs are not limited. Concurrent statements don't see each other's jobs,
-- so together they may exceed the limit. The submitters are read from the rows, because the keeper inserts the jobs of declarations in the
-- name of their owners. Only refusals of people's statements are counted, because the keeper tries again by itself.
CREATE FUNCTION loracomp.admit_jobs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    refused name;
BEGIN
    IF EXISTS (SELECT FROM loracomp.queue_limit AS l WHERE l.per_submitter IS NOT NULL) THEN
        SELECT n.submitted_by INTO refused FROM new_job AS n
        GROUP BY n.submitted_by
        HAVING NOT loracomp.is_admin(n.submitted_by) AND NOT loracomp.is_within_limit(n.submitted_by, max(n.id))
        LIMIT 1;
        IF refused IS NOT NULL THEN
            PERFORM loracomp.return_places(b.id, n.background, n.priority, n.submitted_by, min(n.place), max(n.place))
            FROM new_job AS n JOIN loracomp.base_model AS b ON b.name = n.base_model
            GROUP BY b.id, n.background, n.priority, n.submitted_by;
            PERFORM nextval('loracomp.refused_inserts') WHERE EXISTS (SELECT FROM new_job AS n WHERE NOT n.watched);
            PERFORM loracomp.refuse_job(refused);
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.admit_jobs IS 'Trigger: refuses jobs that would exceed the limit of the queue.';

CREATE TRIGGER admit_jobs AFTER INSERT ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.admit_jobs();

-- newest is the highest id of the jobs that were just inserted, or null if an ended job was queued again. Counting for each INSERT would be
-- slow, so a sequence stores an id: each new job uses at least one id, so jobs up to that id are admitted without counting. Running jobs
-- that are queued again get no new id, so they may exceed the limit until the next count. Each limit has a sequence of its own, because an open
-- transaction may still see the limit before a change, and what it counts says nothing about the new one. drop_counters drops the old ones. A
-- transaction of another isolation level than READ COMMITTED may not see jobs of others that wait, and one that has updated or deleted
-- jobs may have cancelled some, which wait again if it is rolled back. What these count holds for themselves, so no id is stored for others.
CREATE FUNCTION loracomp.is_within_limit(submitter name, newest bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    most CONSTANT bigint := (SELECT l.per_submitter FROM loracomp.queue_limit AS l);
    memory CONSTANT regclass := loracomp.make_counter('loracomp_parts.admitted_' || md5(most || ' jobs of ' || submitter));
    waiting bigint;
BEGIN
    IF most IS NULL OR newest <= pg_sequence_last_value(memory) THEN
        RETURN TRUE;
    END IF;
    waiting := loracomp.count_queued(submitter, most + 1);
    IF newest IS NULL THEN
        PERFORM setval(memory, 0);
    ELSIF
        waiting <= most AND current_setting('transaction_isolation') = 'read committed'
        AND pg_stat_get_xact_tuples_updated('loracomp.job'::regclass) + pg_stat_get_xact_tuples_deleted('loracomp.job'::regclass) = 0
    THEN
        PERFORM setval(memory, newest + most - waiting);
    END IF;
    RETURN waiting <= most;
END
$$;
COMMENT ON FUNCTION loracomp.is_within_limit IS 'Whether no more jobs of a submitter wait than the limit allows. For admit_jobs and retry_job.';

-- Changes nothing.
CREATE FUNCTION loracomp.refuse_job(submitter name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'at most % of % jobs may wait, and this would be more', (SELECT l.per_submitter FROM loracomp.queue_limit AS l),
        CASE submitter WHEN loracomp.caller() THEN 'your' ELSE format('%s''s', submitter) END
        USING ERRCODE = 'configuration_limit_exceeded', CONSTRAINT = 'your_share_of_the_queue_is_full',
            HINT = 'wait until some are answered, cancel jobs that are not needed (loracomp.cancel_jobs), or ask an '
                'administrator for more (loracomp.set_queue_limits)';
END
$$;
COMMENT ON FUNCTION loracomp.refuse_job IS
'Raises the error that a submitter would have more waiting jobs than the limit allows.';

-- Reads only the submitter's own entries of the index of waiting jobs, and at most as many as are asked for.
CREATE FUNCTION loracomp.count_queued(submitter name, at_most bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
    SELECT count(*) FROM (
        SELECT FROM (VALUES (FALSE, FALSE), (FALSE, TRUE), (TRUE, FALSE), (TRUE, TRUE)) AS k (scheduled, background)
        CROSS JOIN LATERAL (
            SELECT FROM loracomp.job AS j
            WHERE j.status = 'queued' AND j.scheduled = k.scheduled AND j.background = k.background
                AND j.submitted_by = count_queued.submitter
            LIMIT at_most
        ) AS q
        LIMIT at_most
    ) AS c;
$$;
COMMENT ON FUNCTION loracomp.count_queued IS 'Number of waiting jobs of a submitter. It stops counting at at_most.';

-- Reads only.
CREATE FUNCTION loracomp.left_to_limit(submitter name) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT l.per_submitter - loracomp.count_queued(left_to_limit.submitter, l.per_submitter) FROM loracomp.queue_limit AS l;
$$;
COMMENT ON FUNCTION loracomp.left_to_limit IS 'How many more jobs of a submitter may wait; null: any number. For ask_page.';
