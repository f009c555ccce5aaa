-- Functions with which people change existing jobs.
--   cancel_job                  one job, by its submitter or an administrator
--     caller, caller_is_admin, give_reason
--   retry_job                   queues one failed or cancelled job again, by its submitter or an administrator
--     caller, caller_is_admin, check_room, give_reason
--   set_priority                moves a queued job in the queue
--   requeue_jobs                queues all jobs again that failed with an error code
--     give_reason               sets the reason for the audit

-- queued or running -> cancelled at once: the lease token of a running job becomes invalid, so its result will not be recorded.
-- Submitters may cancel their own jobs, administrators all jobs; raises in any other state.
CREATE FUNCTION loracomp.cancel_job(id bigint, reason text DEFAULT 'cancelled') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    old loracomp.job;
    before text;
BEGIN
    SELECT * INTO old FROM loracomp.job AS j
    WHERE j.id = cancel_job.id AND (j.submitted_by = loracomp.caller() OR loracomp.caller_is_admin())
    FOR UPDATE;
    IF old.id IS NULL THEN
        RAISE EXCEPTION 'job % does not exist, or is not yours', cancel_job.id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    IF old.status NOT IN ('queued', 'running') THEN
        RAISE EXCEPTION 'job % is %: only a queued or running job can be cancelled', cancel_job.id, old.status
            USING HINT = 'nothing needs to be done: the job has ended';
    END IF;
    before := loracomp.give_reason(coalesce(cancel_job.reason, 'cancelled'));
    UPDATE loracomp.job AS j SET
        status = 'cancelled',
        finished_at = now(),
        lease_token = NULL,
        lease_expires_at = NULL,
        error_code = 'cancelled',
        error = coalesce(cancel_job.reason, 'cancelled')
    WHERE j.id = cancel_job.id;
    -- Tell the worker that runs the job, so that its model stops working on it at once and not only after the next renewal of
    -- the lease. The conditions are those of hint_job.
    IF old.status = 'running' AND current_setting('loracomp.notify', true) IS DISTINCT FROM 'off'
        AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('loracomp_job', 'cancelled');
    END IF;
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.cancel_job IS
'Cancels a queued or running job at once. Submitters may cancel their own jobs, administrators all jobs.';

-- failed or cancelled -> queued, due now, with its attempts reset to 0; raises in any other state. Submitters may retry their own
-- jobs, within the limits of the queue; administrators all jobs.
CREATE FUNCTION loracomp.retry_job(id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    old loracomp.job;
    limits loracomp.queue_limit;
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
    UPDATE loracomp.job AS j SET
        status = 'queued', attempts = 0, expired_leases = 0, run_at = now(), finished_at = NULL,
        error_code = NULL, error = NULL
    WHERE j.id = retry_job.id;
    IF NOT loracomp.caller_is_admin() THEN
        SELECT * INTO limits FROM loracomp.queue_limit;
        PERFORM loracomp.check_room(old.submitted_by, limits, NULL);
    END IF;
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.retry_job IS
'Queues a failed or cancelled job again, with attempts reset to 0. Submitters may retry their own jobs, administrators all.';

-- Moves a queued job in the queue; raises in any other state.
CREATE FUNCTION loracomp.set_priority(job bigint, priority integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    old loracomp.job;
BEGIN
    SELECT * INTO old FROM loracomp.job AS j WHERE j.id = set_priority.job FOR UPDATE;
    IF old.id IS NULL THEN
        RAISE EXCEPTION 'job % does not exist', set_priority.job
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists jobs';
    END IF;
    IF old.status <> 'queued' THEN
        RAISE EXCEPTION 'job % is %: only a queued job has a place in the queue', set_priority.job, old.status
            USING HINT = CASE old.status
                WHEN 'running' THEN 'wait for it, or cancel it'
                ELSE 'nothing needs to be done: it has ended'
            END;
    END IF;
    UPDATE loracomp.job AS j SET priority = set_priority.priority WHERE j.id = set_priority.job;
    INSERT INTO loracomp.audit_event (
        actor, entity, entity_id, action, old_status, new_status, attempt, reason, before, after
    ) VALUES (
        loracomp.caller(), 'job', old.id, 'update', old.status, old.status, old.attempts, 'set_priority',
        jsonb_build_object('priority', old.priority), jsonb_build_object('priority', set_priority.priority)
    );
END
$$;
COMMENT ON FUNCTION loracomp.set_priority IS
'Changes the priority (0 to 1000) of a queued job; the audit keeps the old and the new one.';

-- failed -> queued, due now, with attempts reset to 0, for all jobs that failed with this error code since the given time.
CREATE FUNCTION loracomp.requeue_jobs(error_code text, since timestamptz DEFAULT '-infinity') RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before CONSTANT text := loracomp.give_reason('requeue_jobs');
    requeued bigint;
BEGIN
    UPDATE loracomp.job AS j SET
        status = 'queued', attempts = 0, expired_leases = 0, run_at = now(), finished_at = NULL,
        error_code = NULL, error = NULL
    WHERE j.status = 'failed' AND j.error_code = requeue_jobs.error_code AND j.finished_at >= requeue_jobs.since;
    GET DIAGNOSTICS requeued = ROW_COUNT;
    PERFORM loracomp.give_reason(before);
    IF requeued = 0 THEN
        RAISE WARNING 'no job failed with error code % since %', requeue_jobs.error_code, requeue_jobs.since
            USING HINT = 'bi.failure_by_reason lists the codes, also of jobs that were purged since';
    END IF;
    RETURN requeued;
END
$$;
COMMENT ON FUNCTION loracomp.requeue_jobs IS
'Queues all jobs again that failed with an error code since a given time; returns how many, and warns if there are none.';

-- Sets the reason that the audit's triggers write in this transaction, and returns the previous one. The calling functions can't
-- use a SET clause instead, because Postgres lets only superusers set unknown parameters there.
CREATE FUNCTION loracomp.give_reason(reason text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    before CONSTANT text := current_setting('loracomp.reason', true);
BEGIN
    PERFORM set_config('loracomp.reason', give_reason.reason, true);
    RETURN before;
END
$$;
COMMENT ON FUNCTION loracomp.give_reason IS
'Sets the reason that audit_event gets for changes of jobs in this transaction; returns the previous reason.';
