-- drop: DROP FUNCTION IF EXISTS loracomp.requeue_jobs(text, timestamptz)
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
