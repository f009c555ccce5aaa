-- drop: DROP FUNCTION IF EXISTS loracomp.claim_jobs(text, text, integer, interval, integer)
-- queued -> running for up to batch_size due jobs; counts the attempt and sets lease and fence token. Which jobs:
-- pick_jobs. Beside `held` jobs that the worker has already, a whole batch or none: what is less may go to an idle worker,
-- and a job that is to be alone must be.
CREATE FUNCTION loracomp.claim_jobs(
    worker text, base_model text, batch_size integer, lease interval, held integer DEFAULT 0
)
RETURNS TABLE (
    id bigint,
    lease_token bigint,
    kind text,
    prompt text,
    choices text[],
    max_new_tokens integer,
    stop text[],
    attempts integer,
    timeout_s integer,
    temperature double precision,
    top_p double precision,
    seed bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    picked bigint[];
    served name[];
BEGIN
    PERFORM loracomp.check_range('batch_size', claim_jobs.batch_size, 0, 100000);
    PERFORM loracomp.check_range('lease', extract(EPOCH FROM claim_jobs.lease), 0, 86400);
    PERFORM loracomp.rescue_jobs();
    PERFORM loracomp.wake_jobs();
    SELECT coalesce(array_agg(p.id), '{}'), coalesce(array_agg(p.submitted_by) FILTER (WHERE p.leads), '{}')
    INTO picked, served
    FROM loracomp.pick_jobs(claim_jobs.base_model, claim_jobs.batch_size) AS p;
    IF claim_jobs.held > 0 AND cardinality(picked) < greatest(claim_jobs.batch_size, 2) THEN
        RETURN;
    END IF;
    PERFORM loracomp.take_turns(claim_jobs.base_model, served);
    RETURN QUERY
    WITH claimed AS (
        UPDATE loracomp.job AS j SET
            status = 'running',
            attempts = j.attempts + 1,
            worker = claim_jobs.worker,
            claimed_together = cardinality(picked),
            claimed_at = now(),
            lease_expires_at = now() + least(claim_jobs.lease, make_interval(secs => j.timeout_s)),
            -- One token for the claim: a subquery of its own is evaluated once. Drawn at random, or whoever may
            -- work could guess those of other workers and answer their jobs.
            lease_token = (SELECT hashtextextended(gen_random_uuid()::text, 0))
        WHERE j.id = ANY (picked)
        RETURNING j.*
    )
    SELECT
        c.id, c.lease_token, c.kind, c.prompt, c.choices, c.max_new_tokens, c.stop, c.attempts, c.timeout_s,
        c.temperature, c.top_p, c.seed
    FROM claimed AS c
    ORDER BY c.due, c.id;
END
$$;
COMMENT ON FUNCTION loracomp.claim_jobs IS
'Leases due jobs of a base model to a worker. Every later write must show the lease_token that it returns.';
