-- drop: DROP FUNCTION IF EXISTS loracomp.release_jobs(bigint[], bigint[])
-- running -> queued with the attempt given back and the place in the queue kept, where the token still holds.
CREATE FUNCTION loracomp.release_jobs(ids bigint[], tokens bigint[]) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    before CONSTANT text := loracomp.give_reason('released');
    written bigint;
    missing bigint := cardinality(release_jobs.ids);
BEGIN
    FOR attempt IN 1..2 LOOP
        RETURN QUERY
        WITH held AS MATERIALIZED (
            SELECT j.id
            FROM unnest(release_jobs.ids, release_jobs.tokens) AS i (id, token)
            JOIN loracomp.job AS j ON j.id = i.id AND j.lease_token = i.token
            WHERE j.id = ANY (release_jobs.ids)
            ORDER BY j.id
            FOR UPDATE OF j SKIP LOCKED
        )
        UPDATE loracomp.job AS j SET
            status = 'queued',
            attempts = j.attempts - 1,
            lease_token = NULL,
            lease_expires_at = NULL
        FROM held AS h
        WHERE j.id = h.id AND j.id = ANY (release_jobs.ids)
        RETURNING j.id;
        GET DIAGNOSTICS written = ROW_COUNT;
        missing := missing - written;
        EXIT WHEN missing = 0 OR NOT loracomp.wait_for_jobs(release_jobs.ids, release_jobs.tokens);
    END LOOP;
    PERFORM loracomp.give_reason(before);
END
$$;
COMMENT ON FUNCTION loracomp.release_jobs IS
'Puts jobs that a stopping worker can''t finish back into the queue, uncharged; returns the ids whose token held.';
