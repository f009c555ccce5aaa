-- drop: DROP FUNCTION IF EXISTS loracomp.retry_job(bigint)
-- failed or cancelled -> queued, due now, with all its attempts again; raises in any other state.
CREATE FUNCTION loracomp.retry_job(id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    old loracomp.job;
    before CONSTANT text := loracomp.give_reason('retry_job');
BEGIN
    SELECT * INTO old FROM loracomp.job AS j WHERE j.id = retry_job.id FOR UPDATE;
    IF old.id IS NULL THEN
        RAISE EXCEPTION 'job % does not exist', retry_job.id USING ERRCODE = 'no_data_found';
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
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.retry_job IS 'Queues a failed or cancelled job again, with all its attempts.';
