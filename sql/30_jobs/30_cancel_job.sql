-- drop: DROP FUNCTION IF EXISTS loracomp.cancel_job(bigint, text)
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
