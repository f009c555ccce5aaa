-- The claim leases due jobs to one worker, and does nothing else. The steps that keep the queue in order are in 25_housekeeping.sql.
--   claim_jobs                  called by workers
--     pick_jobs                 locks the first jobs of the queue: 18_places.sql
--
-- A claimed job leaves a dead entry in the queue's index. Vacuum removes it, but not while any session holds an old snapshot. A claim therefore
-- starts at the last claimed place, because new jobs stand behind it. Three kinds of jobs stand before this place: jobs with a higher priority,
-- jobs that were released, and jobs whose INSERT was committed late. Only a full scan of the index (from_start) finds them. A full scan reads all
-- dead entries, so after it a worker waits twenty times as long as it took, but at most a minute, before it makes another.

-- queued -> running for up to batch_size due jobs; counts the attempt and sets lease and fence token. If the worker already holds jobs (held_ids),
-- it gets no job that must run alone; if one of the held jobs must run alone, it gets nothing. held_ids decides, and not the leases, because a
-- model may still be working on a job whose lease has expired. A worker that draws the token itself can give the jobs back if the reply is lost
-- (release_claim). Background jobs only fill up one batch, so that a worker that holds them has room for other jobs. While workers of two releases
-- run, the workers of the older release leave kinds of jobs that they don't know to the workers of the newer one.
CREATE FUNCTION loracomp.claim_jobs(
    worker text, base_model text, batch_size integer, lease interval,
    held_ids bigint[] DEFAULT '{}', from_start boolean DEFAULT TRUE, token bigint DEFAULT NULL,
    kinds text[] DEFAULT '{predict,route,measure}'
)
RETURNS TABLE (
    id bigint, lease_token bigint, kind text, prompt text, choices text[], descriptions text[], max_new_tokens integer,
    stop text[], attempts integer, timeout_s integer, temperature double precision, top_p double precision, seed bigint,
    system_text text, background boolean, text_at int4range, submitted_by text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and in all that it calls, statements are planned once a session, for index scans that stop early: statistics lag behind a
-- queue and would mislead the planner.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    -- Random, so that no worker can guess another worker's token and answer its jobs.
    fence CONSTANT bigint := coalesce(claim_jobs.token, hashtextextended(gen_random_uuid()::text, 0));
    picked bigint[];
BEGIN
    PERFORM loracomp.check_range('batch_size', claim_jobs.batch_size, 0, 100000);
    PERFORM loracomp.check_range('lease', extract(EPOCH FROM claim_jobs.lease), 0, 86400);
    -- If an installer is at work, wait for it here: a function that is called below may just be being replaced.
    LOCK TABLE loracomp.job IN ROW EXCLUSIVE MODE;
    -- While examples are embedded by another encoder, jobs wait, because they can't be routed.
    IF EXISTS (SELECT FROM loracomp.encoder AS e WHERE NOT e.is_ready) THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = ANY (held_ids) AND j.expired_leases > 0) THEN
        picked := coalesce(
            loracomp.pick_jobs(base_model, FALSE, batch_size, held_ids = '{}', from_start, kinds),
            loracomp.pick_jobs(
                base_model, TRUE, greatest(batch_size - cardinality(held_ids), 0), held_ids = '{}', from_start, kinds
            )
        );
    END IF;
    RETURN QUERY
    WITH claimed AS (
        UPDATE loracomp.job AS j SET
            status = 'running',
            attempts = j.attempts + 1,
            worker = claim_jobs.worker,
            claimed_at = now(),
            -- Longer than timeout_s, so that the worker can still say that the job took longer.
            lease_expires_at = now() + least(claim_jobs.lease, make_interval(secs => 2 * j.timeout_s)),
            lease_token = fence
        WHERE j.id = ANY (picked)
        RETURNING j.*
    )
    SELECT
        c.id, c.lease_token, c.kind, c.prompt, c.choices, c.descriptions, c.max_new_tokens, c.stop, c.attempts,
        c.timeout_s, c.temperature, c.top_p, c.seed, c.system_text, c.background, c.text_at, c.submitted_by::text
    FROM claimed AS c
    ORDER BY c.place, c.id;
END
$$;
COMMENT ON FUNCTION loracomp.claim_jobs IS
'Claims due jobs of a base model: leases them to a worker. Every later write must show the returned lease_token. from_start: look from '
'the start of the queue, and not only from where the last claim ended. token: a random number to be the lease_token. kinds: the kinds of jobs '
'that the worker knows.';
