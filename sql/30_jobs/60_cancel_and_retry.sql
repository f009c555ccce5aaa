-- What people do to jobs that are there.
--   cancel_job                  one job, by its submitter or an administrator
--     caller, caller_is_admin, give_reason
--   retry_job                   one that failed or was cancelled, by the same
--     caller, caller_is_admin, check_room, give_reason
--   set_priority                moves a queued job in the queue
--   requeue_jobs                all that failed with one error code
--     give_reason               what the audit says of it

-- queued or running -> cancelled, at once: a running job's fence is void and its result will be dropped.
-- Submitters cancel their own jobs, administrators anyone's; raises in any other state.
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
            USING HINT = 'nothing needs to be done: it has ended';
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
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.cancel_job IS
'Cancels a queued or running job at once; your own, or as an administrator anyone''s.';

-- failed or cancelled -> queued, due now, with all its attempts again; raises in any other state. Submitters retry their
-- own jobs, within the limits of the queue; administrators anyone's.
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
'Queues a failed or cancelled job again, with all its attempts; your own, or as an administrator anyone''s.';

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
'Gives a queued job another priority, 0 to 1000; the audit keeps both.';

-- failed -> queued, due now, with all their attempts again, for all that failed with this code since then.
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
    RETURN requeued;
END
$$;
COMMENT ON FUNCTION loracomp.requeue_jobs IS
'Queues the jobs again that failed with an error code since a time; returns how many.';

-- Sets what the audit's triggers write as reason in this transaction, and returns what was set before. Not a SET clause of
-- the functions that need it: to all but superusers Postgres refuses those for names that it does not know.
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
'Sets the reason that audit_event gets for changes of jobs in this transaction; returns the one before.';
