-- Functions with which people change existing jobs.
--   cancel_job                  one job, by its submitter or an administrator
--   cancel_jobs                 cancels many jobs at once, except jobs that have ended
--     lock_jobs                 the caller's jobs with these ids or tags; set_priority and erase_jobs call it too
--     give_reason               10_values/40_audit.sql
--   retry_job                   queues one failed or cancelled job again, by its submitter or an administrator
--     caller, caller_is_admin, is_within_limit, refuse_job, give_reason
--   set_priority                moves queued jobs in the queue

-- Cancels one job as cancel_jobs does, but raises if the job does not exist, is not the caller's, or has ended.
CREATE FUNCTION loracomp.cancel_job(id bigint, reason text DEFAULT 'cancelled') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    state text;
BEGIN
    IF loracomp.cancel_jobs(ids => ARRAY[cancel_job.id], reason => cancel_job.reason) = 1 THEN
        RETURN;
    END IF;
    SELECT j.status INTO state FROM loracomp.job AS j
    WHERE j.id = cancel_job.id AND (j.submitted_by = loracomp.caller() OR loracomp.caller_is_admin());
    IF state IS NULL THEN
        RAISE EXCEPTION 'job % does not exist, or is not yours', cancel_job.id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    RAISE EXCEPTION 'job % is %: only a queued or running job can be cancelled', cancel_job.id, state
        USING HINT = 'nothing needs to be done: the job has ended';
END
$$;
COMMENT ON FUNCTION loracomp.cancel_job IS
'Cancels a queued or running job at once. Submitters may cancel their own jobs, administrators all jobs.';

-- queued or running -> cancelled at once. The lease token of a running job becomes invalid, so its result will not be recorded.
CREATE FUNCTION loracomp.cancel_jobs(
    ids bigint[] DEFAULT NULL, tags jsonb DEFAULT NULL, reason text DEFAULT 'cancelled'
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    picked CONSTANT bigint[] := loracomp.lock_jobs(cancel_jobs.ids, cancel_jobs.tags, '{queued,running}');
    running CONSTANT boolean := EXISTS (
        SELECT FROM loracomp.job AS j WHERE j.id = ANY (picked) AND j.lease_token IS NOT NULL
    );
    before CONSTANT text := loracomp.give_reason(coalesce(cancel_jobs.reason, 'cancelled'));
BEGIN
    UPDATE loracomp.job AS j SET
        status = 'cancelled',
        finished_at = now(),
        lease_token = NULL,
        lease_expires_at = NULL,
        error_code = 'cancelled',
        error = coalesce(cancel_jobs.reason, 'cancelled')
    WHERE j.id = ANY (picked);
    -- Tell the workers that run these jobs. Otherwise their models would work on them until the next renewal of the leases.
    PERFORM loracomp.notify('loracomp_job', 'cancelled') WHERE running;
    PERFORM loracomp.give_reason(before);
    RETURN cardinality(picked);
END
$$;
COMMENT ON FUNCTION loracomp.cancel_jobs IS
'Of these jobs, cancels all that are queued or running, and returns how many. Submitters may cancel their own jobs, '
'administrators all jobs.';

-- Locks the jobs that have these ids, or all of these tags: the caller's jobs, or anybody's if an administrator calls. null for states means
-- any state. Jobs are locked in the order of their ids, as workers lock them, to avoid deadlocks. The calling function runs with its owner's
-- rights. Tags are compared by equality and not by containment, because every object under "customer" contains {"customer": {}}.
CREATE FUNCTION loracomp.lock_jobs(ids bigint[], tags jsonb, states text[] DEFAULT NULL) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    caller CONSTANT name := loracomp.caller();
    is_admin CONSTANT boolean := loracomp.caller_is_admin();
BEGIN
    IF num_nonnulls(lock_jobs.ids, lock_jobs.tags) <> 1 THEN
        RAISE EXCEPTION 'give either ids or tags'
            USING ERRCODE = 'invalid_parameter_value', HINT = $h$such as ids => '{4711, 4712}' or tags => '{"customer": 7}'$h$;
    END IF;
    IF jsonb_typeof(lock_jobs.tags) <> 'object' OR lock_jobs.tags = '{}' THEN
        RAISE EXCEPTION 'tags must be a JSON object that names a tag, and is %', lock_jobs.tags
            USING ERRCODE = 'invalid_parameter_value', HINT = 'such as {"customer": 7}';
    END IF;
    RETURN ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE (is_admin OR j.submitted_by = caller)
            AND (lock_jobs.states IS NULL OR j.status = ANY (lock_jobs.states))
            AND (j.id = ANY (lock_jobs.ids) OR lock_jobs.tags IS NOT NULL AND NOT EXISTS (
                SELECT FROM jsonb_each(lock_jobs.tags) AS g WHERE j.tags -> g.key IS DISTINCT FROM g.value
            ))
        ORDER BY j.id
        FOR UPDATE
    );
END
$$;
COMMENT ON FUNCTION loracomp.lock_jobs IS
'Locks the caller''s jobs (an administrator''s call: all jobs) with these ids or tags, in these states, and returns their ids.';

-- failed or cancelled -> queued and due now, with attempts reset to 0. Raises if the job is in another state. Submitters may retry their own
-- jobs, within the limit of the queue; administrators may retry all jobs.
CREATE FUNCTION loracomp.retry_job(id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    old loracomp.job;
    before CONSTANT text := loracomp.give_reason('retry_job');
BEGIN
    SELECT * INTO old FROM loracomp.job AS j
    WHERE j.id = retry_job.id AND (j.submitted_by = loracomp.caller() OR loracomp.caller_is_admin())
    FOR UPDATE;
    IF old.id IS NULL THEN
        RAISE EXCEPTION 'job % does not exist, or is not yours', retry_job.id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    IF old.status NOT IN ('failed', 'cancelled') THEN
        RAISE EXCEPTION 'job % is %: only a failed or cancelled job can be tried again', retry_job.id, old.status
            USING HINT = CASE old.status
                WHEN 'succeeded' THEN 'insert it again for another prediction'
                WHEN 'running' THEN 'wait for it, or cancel it first'
                ELSE 'a worker will claim it when it is due'
            END;
    END IF;
    old.attempts := 0; -- so that take_place treats it as a new job, and not as a retry
    old.expired_leases := 0;
    UPDATE loracomp.job AS j SET
        status = 'queued', attempts = 0, expired_leases = 0, run_at = now(), scheduled = FALSE,
        place = loracomp.take_place(old, old.priority, old.background), finished_at = NULL, error_code = NULL, error = NULL
    WHERE j.id = retry_job.id;
    PERFORM loracomp.notify('loracomp_job', '');
    IF NOT (loracomp.caller_is_admin() OR loracomp.is_within_limit(old.submitted_by, NULL)) THEN
        PERFORM loracomp.refuse_job(old.submitted_by);
    END IF;
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.retry_job IS
'Queues a failed or cancelled job again, with attempts reset to 0. Submitters may retry their own jobs, administrators all.';

-- Moves queued jobs behind the jobs that their submitter already has at the new priority. Jobs in other states keep their priority.
CREATE FUNCTION loracomp.set_priority(
    priority integer, ids bigint[] DEFAULT NULL, tags jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    picked CONSTANT bigint[] := loracomp.lock_jobs(set_priority.ids, set_priority.tags, '{queued}');
BEGIN
    -- Materialized, as in wake_jobs, so that take_place is called once for each job.
    WITH p AS MATERIALIZED (
        SELECT o.id, o.priority, b.background, CASE
            WHEN o.scheduled THEN NULL
            WHEN o.priority = set_priority.priority THEN o.place
            ELSE loracomp.take_place(o, set_priority.priority, b.background)
        END AS place
        FROM loracomp.job AS o
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN o.priority = set_priority.priority THEN o.background -- wake_jobs may have taken it out of the background
                ELSE loracomp.is_background(o.kind, set_priority.priority)
            END AS background
        ) AS b
        WHERE o.id = ANY (picked)
        ORDER BY o.place, o.id
    ),
    moved AS (
        UPDATE loracomp.job AS j SET priority = set_priority.priority, background = p.background, place = p.place
        FROM p WHERE j.id = p.id
        RETURNING j.id, j.attempts, p.priority AS before
    )
    INSERT INTO loracomp.audit_event (
        actor, entity, entity_id, action, old_status, new_status, attempt, reason, before, after
    )
    SELECT
        loracomp.caller(), 'job', m.id, 'update', 'queued', 'queued', m.attempts, 'set_priority',
        jsonb_build_object('priority', m.before), jsonb_build_object('priority', set_priority.priority)
    FROM moved AS m;
    RETURN cardinality(picked);
END
$$;
COMMENT ON FUNCTION loracomp.set_priority IS
'Of these jobs, gives all that are queued another priority (-10 to 10), and returns how many; the audit keeps the old and '
'the new one. Submitters may do this to their own jobs, administrators to all jobs.';
