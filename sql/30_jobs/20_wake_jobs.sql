-- drop: DROP FUNCTION IF EXISTS loracomp.wake_jobs()
-- scheduled -> due, where the time has come: jobs for later stand apart, so that no claim walks through them. claim_jobs
-- does this first.
CREATE FUNCTION loracomp.wake_jobs() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    woken CONSTANT bigint[] := ARRAY(
        SELECT d.id FROM loracomp.job AS d
        WHERE d.status = 'queued' AND d.scheduled AND d.run_at <= now()
        ORDER BY d.run_at LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- An UPDATE of no rows would cost each claim the audit's trigger.
    IF woken <> '{}' THEN
        UPDATE loracomp.job AS j SET scheduled = FALSE WHERE j.id = ANY (woken);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.wake_jobs IS 'Lets jobs be claimed whose run_at has come. For claim_jobs.';
