-- The claim: due jobs become running, leased to one worker.
--   claim_jobs                  called by workers
--     pick_jobs                 locks the jobs to claim
--       find_waiting            where jobs wait: 18_find_waiting.sql
--         rescue_jobs           queues or fails jobs whose lease has expired
--           retry_delay         how long they wait before the next attempt (fail_jobs calls it too)
--         wake_jobs             makes scheduled jobs due whose run_at has come
--       first_in_turn           the jobs that come first, fairly among submitters
--     take_turns                notes that these submitters were served

-- queued -> running for up to batch_size due jobs; counts the attempt and sets lease and fence token. pick_jobs chooses the
-- jobs. The worker may already hold jobs (held_ids): then no job that must run alone is claimed, and none is claimed while such a job
-- runs. A worker of an earlier release gives only their number (held); finding them then takes longer under an old snapshot.
CREATE FUNCTION loracomp.claim_jobs(
    worker text,
    base_model text,
    batch_size integer,
    lease interval,
    held integer DEFAULT 0,
    held_ids bigint[] DEFAULT NULL
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
    seed bigint,
    system_text text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- Here and in all that it calls, each statement is planned once a session, and not for each claim.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    picked bigint[];
    served name[];
    company bigint[] := claim_jobs.held_ids;
BEGIN
    PERFORM loracomp.check_range('batch_size', claim_jobs.batch_size, 0, 100000);
    PERFORM loracomp.check_range('lease', extract(EPOCH FROM claim_jobs.lease), 0, 86400);
    -- Wait here for an installer, and not in a function that is called below, which the installer would have replaced.
    LOCK TABLE loracomp.job IN ROW EXCLUSIVE MODE;
    IF company IS NULL THEN
        company := ARRAY(
            SELECT j.id FROM loracomp.job AS j
            WHERE claim_jobs.held > 0 AND j.status = 'running' AND j.worker = claim_jobs.worker
        );
    END IF;
    SELECT coalesce(array_agg(p.id), '{}'), coalesce(array_agg(p.submitted_by) FILTER (WHERE p.leads), '{}')
    INTO picked, served
    FROM loracomp.pick_jobs(claim_jobs.base_model, claim_jobs.batch_size) AS p;
    -- By lease_token and not by status = 'running', or the index of leases would be read, which has dead entries too.
    IF company <> '{}' AND (
        EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = ANY (picked) AND j.expired_leases > 0)
        OR EXISTS (
            SELECT FROM loracomp.job AS j
            WHERE j.id = ANY (company) AND j.lease_token IS NOT NULL AND j.worker = claim_jobs.worker
                AND j.expired_leases > 0
        )
    ) THEN
        RETURN;
    END IF;
    -- A job that was claimed alone does not run alone any more. A job that another session has locked (it may be cancelling it, and
    -- never commit) is skipped: waiting for it would stop the worker.
    IF cardinality(company) = 1 AND picked <> '{}' THEN
        UPDATE loracomp.job AS j SET claimed_together = 1 + cardinality(picked)
        WHERE j.id = ANY (ARRAY(
            SELECT h.id FROM loracomp.job AS h
            WHERE h.id = ANY (company) AND h.lease_token IS NOT NULL AND h.worker = claim_jobs.worker
                AND h.claimed_together = 1
            FOR NO KEY UPDATE SKIP LOCKED
        ));
    END IF;
    PERFORM loracomp.take_turns(claim_jobs.base_model, served::text[]);
    RETURN QUERY
    WITH claimed AS (
        UPDATE loracomp.job AS j SET
            status = 'running',
            attempts = j.attempts + 1,
            worker = claim_jobs.worker,
            claimed_together = cardinality(company || picked),
            claimed_at = now(),
            -- Longer than timeout_s, so that the worker can still say that the job took longer.
            lease_expires_at = now() + least(claim_jobs.lease, make_interval(secs => 2 * j.timeout_s)),
            -- One token for the whole claim, because an uncorrelated subquery is evaluated once. It is random, so that no
            -- worker can guess another worker's token and answer its jobs.
            lease_token = (SELECT hashtextextended(gen_random_uuid()::text, 0))
        WHERE j.id = ANY (picked)
        RETURNING j.*
    )
    SELECT
        c.id, c.lease_token, c.kind, c.prompt, c.choices, c.max_new_tokens, c.stop, c.attempts, c.timeout_s,
        c.temperature, c.top_p, c.seed, c.system_text
    FROM claimed AS c
    ORDER BY c.due, c.id;
END
$$;
COMMENT ON FUNCTION loracomp.claim_jobs IS
'Claims due jobs of a base model: leases them to a worker. Every later write must show the returned lease_token.';

-- scheduled -> due, for at most `most` jobs whose run_at has come, and was not before `since`. Scheduled jobs are in another index,
-- so that claims need not read past them.
CREATE FUNCTION loracomp.wake_jobs(since timestamptz DEFAULT '-infinity', most integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    woken CONSTANT bigint[] := ARRAY(
        SELECT d.id FROM loracomp.job AS d
        WHERE d.status = 'queued' AND d.scheduled AND d.run_at BETWEEN wake_jobs.since AND now()
        ORDER BY d.run_at LIMIT wake_jobs.most
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- Check first, because an UPDATE of no rows would still run the audit's trigger in each claim.
    IF woken <> '{}' THEN
        UPDATE loracomp.job AS j SET scheduled = FALSE WHERE j.id = ANY (woken);
    END IF;
    RETURN cardinality(woken);
END
$$;
COMMENT ON FUNCTION loracomp.wake_jobs IS
'Makes jobs whose run_at has come available to claims, and returns their number. For find_waiting.';

-- running -> queued for at most `most` jobs whose lease has expired, and not before `since`; from then on each is claimed alone. The
-- attempt is given back, unless the job was claimed alone: then the attempt counts, and after the last one the job is failed.
-- A worker whose model goes on ends a job at its timeout_s itself (fail_jobs). If it did not, it died or hangs, and nobody knows
-- which job of a batch that is due to.
CREATE FUNCTION loracomp.rescue_jobs(since timestamptz DEFAULT '-infinity', most integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    expired CONSTANT bigint[] := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.status = 'running' AND j.lease_expires_at >= rescue_jobs.since AND j.lease_expires_at < now()
        ORDER BY j.lease_expires_at LIMIT rescue_jobs.most
        FOR UPDATE SKIP LOCKED
    );
BEGIN
    -- Check first, because an UPDATE of no rows would still run the audit's trigger in each claim.
    IF expired = '{}' THEN
        RETURN 0;
    END IF;
    UPDATE loracomp.job AS j SET
        status = CASE WHEN e.spent THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN e.spent THEN now() END,
        attempts = j.attempts - CASE WHEN e.alone THEN 0 ELSE 1 END,
        expired_leases = j.expired_leases + 1,
        run_at = CASE WHEN e.alone AND NOT e.spent THEN now() + loracomp.retry_delay(j.attempts) ELSE j.run_at END,
        lease_token = NULL,
        lease_expires_at = NULL,
        error_code = CASE WHEN e.timed_out THEN 'timed_out' ELSE 'lease_expired' END,
        error = format(
            '%s: worker %s stopped or hung while it worked on %s',
            CASE WHEN e.timed_out THEN format('it took longer than its timeout_s of %s s', j.timeout_s) ELSE 'its lease ran out' END,
            j.worker, CASE WHEN e.alone THEN 'this job alone' ELSE 'a batch with this job in it' END
        )
    FROM (
        SELECT
            r.id, r.claimed_together = 1 AS alone, r.claimed_together = 1 AND r.attempts >= r.max_attempts AS spent,
            r.lease_expires_at >= r.claimed_at + make_interval(secs => r.timeout_s) AS timed_out
        FROM loracomp.job AS r WHERE r.id = ANY (expired)
    ) AS e
    WHERE j.id = e.id AND j.id = ANY (expired);
    PERFORM nextval('loracomp.rescued_jobs') FROM unnest(expired);
    RETURN cardinality(expired);
END
$$;
COMMENT ON FUNCTION loracomp.rescue_jobs IS
'Queues jobs whose lease has expired again (or fails them), and returns their number. Each claim calls it.';

-- Reads only. The delay doubles with each attempt, up to ten minutes, and varies randomly by half, so that retries are spread.
CREATE FUNCTION loracomp.retry_delay(attempts integer) RETURNS interval
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT make_interval(secs => least(2.0 ^ attempts, 600) * (0.5 + random()));
END;
COMMENT ON FUNCTION loracomp.retry_delay IS 'How long a job waits before its next attempt, after this many attempts.';

-- Locks the due jobs that a claim takes: the first jobs of first_in_turn that no other session has locked.
-- `leads` marks a submitter's first job; claiming it uses the submitter's turn.
-- Only if no other job is due, jobs in the background are taken: those of evaluations, of kind measure, and with a priority below 0.
-- A job whose lease has ever expired is claimed in a batch of one, so that a job that kills its worker affects no other job.
CREATE FUNCTION loracomp.pick_jobs(base_model text, batch_size integer)
RETURNS TABLE (id bigint, submitted_by name, leads boolean)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
-- Here and in the functions that it calls, the plan is forced to index scans that stop early, because statistics lag
-- behind a queue and would mislead the planner.
SET enable_seqscan = off
SET enable_bitmapscan = off
-- enable_sort = off: the planner then reads the queue's index, which is in the right order, and not the index of idempotency
-- keys, which contains every job.
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    waiting record;
BEGIN
    waiting := loracomp.find_waiting(pick_jobs.base_model);
    RETURN QUERY
    WITH candidates AS MATERIALIZED (
        -- Read more jobs than needed, because other workers may lock the same first jobs at the same moment.
        SELECT f.* FROM loracomp.first_in_turn(
            pick_jobs.base_model, 4 * pick_jobs.batch_size, waiting.submitters, waiting.firsts, waiting.first_ids
        ) AS f
    ),
    everyday AS MATERIALIZED (
        SELECT c.id, c.submitted_by, c.turn, c.place, l.suspect
        FROM candidates AS c
        CROSS JOIN LATERAL (
            SELECT j.expired_leases > 0 AS suspect FROM loracomp.job AS j
            WHERE j.id = c.id AND j.status = 'queued'
            FOR UPDATE SKIP LOCKED
        ) AS l
        LIMIT pick_jobs.batch_size
    ),
    background AS MATERIALIZED (
        SELECT j.id, j.submitted_by, 2 AS turn, 1 AS place, j.due, j.expired_leases > 0 AS suspect
        FROM loracomp.job AS j
        WHERE j.status = 'queued' AND (j.evaluation IS NOT NULL OR j.kind = 'measure' OR j.priority < 0)
            AND j.base_model = pick_jobs.base_model AND NOT j.scheduled
            AND (j.due, j.id) >= (waiting.background, waiting.background_id) AND j.due > now()
        ORDER BY j.due, j.id
        LIMIT CASE WHEN EXISTS (SELECT FROM everyday) THEN 0 ELSE pick_jobs.batch_size END
        FOR UPDATE SKIP LOCKED
    ),
    locked AS (
        SELECT e.id, e.submitted_by, e.turn, e.place, NULL AS due, e.suspect FROM everyday AS e
        UNION ALL
        SELECT b.* FROM background AS b
    ),
    ranked AS (
        SELECT l.*, row_number() OVER w AS number, first_value(l.suspect) OVER w AS suspect_first
        FROM locked AS l
        WINDOW w AS (ORDER BY l.place, l.due, l.id)
    )
    SELECT r.id, r.submitted_by, r.turn = 1 FROM ranked AS r
    WHERE CASE WHEN r.suspect_first THEN r.number = 1 ELSE NOT r.suspect END
    ORDER BY r.number;
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters. For claim_jobs.';

-- Reads only: the due jobs that come first. One submitter's jobs are ordered by due. Between submitters, a job's waiting time
-- counts from when its submitter was last served, so that a million jobs of one submitter don't make others wait; each step of
-- priority counts like a minute of waiting.
-- It first reads an even share of jobs of each submitter, then more only of submitters all of whose jobs read so far come first.
-- The arrays are the result of find_waiting.
CREATE FUNCTION loracomp.first_in_turn(
    base_model text, most integer, submitters text[], firsts timestamptz[], first_ids bigint[]
)
RETURNS TABLE (id bigint, submitted_by name, turn integer, place bigint)
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- An even share, rounded down, plus two, so that with equal demand no submitter's whole share comes first.
    share integer := least(first_in_turn.most, first_in_turn.most / greatest(cardinality(submitters), 1) + 2);
    shares integer[] := array_fill(share, ARRAY[coalesce(cardinality(submitters), 0)]);
    ids bigint[];
    names name[];
    turns integer[];
    deeper integer;
    next_share integer;
BEGIN
    LOOP
        SELECT array_agg(f.id), array_agg(f.submitted_by), array_agg(f.turn) INTO ids, names, turns
        FROM (
            SELECT h.id, s.submitted_by::name, h.turn
            FROM unnest(submitters, firsts, first_ids, shares) AS s (submitted_by, first, first_id, share)
            LEFT JOIN LATERAL (
                -- As in take_turns.
                SELECT n.served_at FROM loracomp.turn AS n
                WHERE n.base_model = first_in_turn.base_model AND n.submitted_by = s.submitted_by::name
                ORDER BY n.served_at DESC LIMIT 1
            ) AS t ON TRUE
            CROSS JOIN LATERAL (
                -- A submitter's first job waits since the submitter's last turn, its other jobs since now. The running maximum
                -- keeps the jobs in their order.
                SELECT d.id, d.due, d.turn, max(
                    d.due + greatest(interval '0', CASE d.turn WHEN 1 THEN t.served_at ELSE now() END - d.run_at)
                ) OVER (ORDER BY d.turn) AS place
                FROM (
                    -- Jobs in the background are due later than others.
                    SELECT j.id, j.due, j.run_at, row_number() OVER (ORDER BY j.due, j.id)::integer AS turn
                    FROM loracomp.job AS j
                    WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = first_in_turn.base_model
                        AND j.submitted_by = s.submitted_by::name
                        AND (j.due, j.id) >= (s.first, s.first_id) AND j.due <= now()
                    ORDER BY j.due, j.id LIMIT s.share
                ) AS d
            ) AS h
            ORDER BY h.place, h.turn, h.due, h.id LIMIT first_in_turn.most
        ) AS f;
        EXIT WHEN share = first_in_turn.most OR names IS NULL;
        -- Read more only of submitters all of whose jobs read so far were taken; the others can't have more that come first.
        SELECT
            array_agg(w.name), array_agg(w.first), array_agg(w.first_id), array_agg(n.taken),
            count(*) FILTER (WHERE n.taken = share)
        INTO submitters, firsts, first_ids, shares, deeper
        FROM (SELECT u.name, count(*)::integer AS taken FROM unnest(names) AS u (name) GROUP BY u.name) AS n
        JOIN unnest(submitters, firsts, first_ids) AS w (name, first, first_id) ON w.name::name = n.name;
        EXIT WHEN deeper = 0;
        next_share := least(first_in_turn.most, greatest(4 * share, first_in_turn.most / deeper));
        shares := array_replace(shares, share, next_share);
        share := next_share;
    END LOOP;
    RETURN QUERY
    SELECT u.id, u.submitted_by, u.turn, u.place
    FROM unnest(ids, names, turns) WITH ORDINALITY AS u (id, submitted_by, turn, place);
END
$$;
COMMENT ON FUNCTION loracomp.first_in_turn IS
'The due jobs of a base model that come first, fairly among submitters, at most `most`. For pick_jobs.';

-- Stores that these submitters were served now, in this order; the times are a microsecond apart, so that no two are equal.
-- It never waits: a row that another claim has locked is skipped, because that claim stores the time itself.
-- The submitters are text: with an array of names, base_model would get the collation of names, and no index would fit.
CREATE FUNCTION loracomp.take_turns(base_model text, submitters text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    newcomers text[];
BEGIN
    -- Read the index from its end, where the newest version of the row is, so that its dead versions are not read.
    WITH served AS MATERIALIZED (
        SELECT s.submitted_by::name, s.place, t.served_at
        FROM unnest(take_turns.submitters) WITH ORDINALITY AS s (submitted_by, place)
        LEFT JOIN LATERAL (
            SELECT n.served_at FROM loracomp.turn AS n
            WHERE n.base_model = take_turns.base_model AND n.submitted_by = s.submitted_by::name
            ORDER BY n.served_at DESC LIMIT 1
        ) AS t ON TRUE
    ),
    free AS MATERIALIZED (
        SELECT s.place, l.ctid FROM served AS s
        CROSS JOIN LATERAL (
            SELECT t.ctid FROM loracomp.turn AS t
            WHERE t.base_model = take_turns.base_model AND t.submitted_by = s.submitted_by AND t.served_at = s.served_at
            FOR UPDATE SKIP LOCKED
        ) AS l
    ),
    noted AS (
        UPDATE loracomp.turn AS t SET served_at = now() + interval '1 microsecond' * f.place
        FROM free AS f WHERE t.ctid = f.ctid
    )
    SELECT array_agg(s.submitted_by::text ORDER BY s.place) INTO newcomers FROM served AS s WHERE s.served_at IS NULL;
    IF newcomers IS NULL THEN
        RETURN;
    END IF;
    -- Lock before inserting a new submitter, or two claims could insert two rows for it. Only the owner can hold this lock.
    PERFORM FROM loracomp.base_model AS b WHERE b.name = take_turns.base_model FOR NO KEY UPDATE SKIP LOCKED;
    IF found THEN
        INSERT INTO loracomp.turn (base_model, submitted_by, served_at)
        SELECT take_turns.base_model, s.submitted_by::name, now() + interval '1 microsecond' * s.place
        FROM unnest(newcomers) WITH ORDINALITY AS s (submitted_by, place)
        WHERE NOT EXISTS (
            SELECT FROM loracomp.turn AS t
            WHERE t.base_model = take_turns.base_model AND t.submitted_by = s.submitted_by::name
        );
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.take_turns IS 'Stores when submitters were last served. For claim_jobs.';
