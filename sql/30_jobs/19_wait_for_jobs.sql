-- drop: DROP FUNCTION IF EXISTS loracomp.wait_for_jobs(bigint[], bigint[])
-- Locks those of the jobs whose token still holds. Workers' writes take what is free and come here for the rest, which a
-- heartbeat may hold for a moment, or whoever cancelled a job and leaves the transaction open: what nobody lets go of within two
-- seconds is left to its lease, or one submitter could stop every worker, and with it everybody's jobs.
CREATE FUNCTION loracomp.wait_for_jobs(ids bigint[], tokens bigint[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET lock_timeout = '2s'
AS $$
BEGIN
    PERFORM FROM unnest(wait_for_jobs.ids, wait_for_jobs.tokens) AS i (id, token)
    JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
    WHERE j.id = ANY (wait_for_jobs.ids)
    ORDER BY j.id
    FOR UPDATE OF j;
    RETURN found;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        RETURN TRUE;
END
$$;
COMMENT ON FUNCTION loracomp.wait_for_jobs IS
'Waits up to two seconds for jobs that others have locked; whether it is worth looking again. For workers'' writes.';
