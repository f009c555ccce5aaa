-- drop: DROP FUNCTION IF EXISTS loracomp.fail_jobs(bigint[], bigint[], text[], text[], boolean[])
-- running -> queued, later, where trying again may help and attempts are left; else -> failed. Only where tokens hold.
CREATE FUNCTION loracomp.fail_jobs(
    ids bigint[], tokens bigint[], codes text[], messages text[], retries boolean[]
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    written bigint;
    missing bigint := cardinality(fail_jobs.ids);
BEGIN
    FOR attempt IN 1..2 LOOP
        RETURN QUERY
        WITH held AS MATERIALIZED (
            SELECT j.id, i.code, i.message, i.retry AND j.attempts < j.max_attempts AS again
            FROM unnest(fail_jobs.ids, fail_jobs.tokens, fail_jobs.codes, fail_jobs.messages, fail_jobs.retries)
                AS i (id, token, code, message, retry)
            JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
            WHERE j.id = ANY (fail_jobs.ids)
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        )
        UPDATE loracomp.job AS j SET
            status = CASE WHEN h.again THEN 'queued' ELSE 'failed' END,
            finished_at = CASE WHEN NOT h.again THEN now() END,
            run_at = CASE WHEN h.again THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
            lease_token = NULL,
            lease_expires_at = NULL,
            error_code = h.code,
            error = h.message
        FROM held AS h
        WHERE j.id = h.id AND j.id = ANY (fail_jobs.ids)
        RETURNING j.id;
        GET DIAGNOSTICS written = ROW_COUNT;
        missing := missing - written;
        EXIT WHEN missing = 0 OR NOT loracomp.wait_for_jobs(fail_jobs.ids, fail_jobs.tokens);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.fail_jobs IS
'Ends jobs as failed, or queues them for another attempt, where the lease token still holds; returns those ids.';
