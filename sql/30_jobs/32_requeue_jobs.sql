-- drop: DROP FUNCTION IF EXISTS loracomp.requeue_jobs(text, timestamptz)
-- failed -> queued, due now, with all their attempts again, for all that failed with this code since then.
CREATE FUNCTION loracomp.requeue_jobs(error_code text, since timestamptz DEFAULT '-infinity') RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = loracomp, public, pg_temp
SET loracomp.reason = 'requeue_jobs'
BEGIN ATOMIC
    WITH requeued AS (
        UPDATE loracomp.job AS j SET
            status = 'queued', attempts = 0, run_at = now(), finished_at = NULL, error_code = NULL, error = NULL
        WHERE j.status = 'failed' AND j.error_code = requeue_jobs.error_code AND j.finished_at >= requeue_jobs.since
        RETURNING j.id
    )
    SELECT count(*) FROM requeued;
END;
COMMENT ON FUNCTION loracomp.requeue_jobs IS
'Queues the jobs again that failed with an error code since a time; returns how many.';
