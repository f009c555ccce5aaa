-- drop: DROP FUNCTION IF EXISTS loracomp.wake_jobs()
-- scheduled -> due, where the time has come: jobs for later stand apart, so that no claim walks through them. claim_jobs
-- does this first.
CREATE FUNCTION loracomp.wake_jobs() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
BEGIN
    WITH due AS MATERIALIZED (
        SELECT j.id FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.scheduled AND j.run_at <= now()
        ORDER BY j.run_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    )
    UPDATE loracomp.job AS j SET scheduled = FALSE FROM due AS d WHERE j.id = d.id;
END
$$;
COMMENT ON FUNCTION loracomp.wake_jobs IS 'Lets jobs be claimed whose run_at has come. For claim_jobs.';
