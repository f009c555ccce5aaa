-- Where jobs wait, and what has come due.
--   find_waiting                called by pick_jobs
--     rescue_jobs, wake_jobs    20_claim.sql
--
-- A claimed job leaves dead entries in the indexes that claims read. Vacuum removes them, but not while any session holds an old
-- snapshot. Then a claim that read the indexes from the start would read more each time. So a session remembers how far it has
-- read, and reads on from there.

-- Queues what has come due, and returns where jobs of a base model wait: the submitters, with the first job of each, and the first
-- job in the background. A reader of the queue's index that starts there reads no dead entries before it.
-- It reads from the start as long as that is cheap. A look from the start that reads more than 1,000 entries (more where there are
-- many submitters) is repeated only after two microseconds for each of them, and at the latest after a minute. Until then, each
-- look starts where the last one found the first waiting job, but at least a second before now, because an INSERT may commit later
-- than others. (Jobs in the background, leases and run_at have no such second, which would be read again each time.)
-- A job that joins the queue even further in front (by its priority, released by a worker, or after a long transaction) waits for
-- the next look from the start.
-- What is remembered describes the database and not a client, so it stays true if a pooler gives the session to another client.
CREATE FUNCTION loracomp.find_waiting(
    base_model text,
    OUT submitters text[], -- text for the same reason as in take_turns
    OUT firsts timestamptz[],
    OUT first_ids bigint[],
    OUT background timestamptz,
    OUT background_id bigint
)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    indexes CONSTANT text[] := '{loracomp.job_queue, loracomp.job_queue_in_the_background, loracomp.job_leases,
        loracomp.job_scheduled}';
    most CONSTANT integer := 1000;
    longest CONSTANT interval := interval '1 minute';
    certain CONSTANT timestamptz := now() - interval '1 second';
    remembered CONSTANT jsonb := coalesce(nullif(current_setting('loracomp.waiting', true), ''), '{}');
    known jsonb := remembered -> find_waiting.base_model;
    whole CONSTANT boolean := (
        now() >= (known ->> 'looked_at')::timestamptz AND now() < (known ->> 'look_until')::timestamptz
        AND (known ->> 'look_until')::timestamptz <= now() + longest
    ) IS NOT TRUE;
    look_until timestamptz := known ->> 'look_until';
    looked_at timestamptz := '-infinity';
    is_dear boolean;
    names text[] := '{}';
    bounds timestamptz[];
    bound_ids bigint[];
    read bigint := (SELECT -sum(pg_stat_get_xact_tuples_returned(i.index::regclass)) FROM unnest(indexes) AS i (index));
    rescued integer;
    woken integer;
BEGIN
    IF NOT whole THEN
        looked_at := known ->> 'looked_at';
        SELECT array_agg(k.submitted_by), array_agg(k.first), array_agg(k.first_id) INTO names, bounds, bound_ids
        FROM jsonb_to_recordset(known -> 'firsts') AS k (submitted_by text, first timestamptz, first_id bigint);
    END IF;
    rescued := loracomp.rescue_jobs(looked_at, most);
    woken := loracomp.wake_jobs(looked_at, most);
    WITH RECURSIVE newcomer (before, submitted_by, due, id) AS (
        -- Between each two submitters that are known, jump through the index from one submitter to the next.
        SELECT lead(k.submitted_by) OVER (ORDER BY k.submitted_by), k.submitted_by, NULL::timestamptz, NULL::bigint
        FROM (SELECT ''::name AS submitted_by UNION ALL SELECT n.name::name FROM unnest(names) AS n (name)) AS k
        UNION ALL
        SELECT n.before, j.*
        FROM newcomer AS n
        CROSS JOIN LATERAL (
            (
                SELECT q.submitted_by, q.due, q.id FROM loracomp.job AS q
                WHERE q.status = 'queued' AND NOT q.scheduled AND q.base_model = find_waiting.base_model
                    AND q.submitted_by > n.submitted_by AND q.submitted_by < n.before
                ORDER BY q.submitted_by, q.due, q.id LIMIT 1
            )
            UNION ALL
            (
                SELECT q.submitted_by, q.due, q.id FROM loracomp.job AS q
                WHERE q.status = 'queued' AND NOT q.scheduled AND q.base_model = find_waiting.base_model
                    AND q.submitted_by > n.submitted_by AND n.before IS NULL
                ORDER BY q.submitted_by, q.due, q.id LIMIT 1
            )
        ) AS j
    ),
    waiting AS (
        SELECT n.submitted_by, n.due, n.id FROM newcomer AS n WHERE n.due IS NOT NULL
        UNION ALL
        SELECT k.submitted_by::name, j.due, j.id
        FROM unnest(names, bounds, bound_ids) AS k (submitted_by, bound, bound_id)
        CROSS JOIN LATERAL (
            SELECT q.due, q.id FROM loracomp.job AS q
            WHERE q.status = 'queued' AND NOT q.scheduled AND q.base_model = find_waiting.base_model
                AND q.submitted_by = k.submitted_by::name AND (q.due, q.id) >= (k.bound, k.bound_id) AND q.due <= now()
            ORDER BY q.due, q.id LIMIT 1
        ) AS j
    )
    SELECT array_agg(w.submitted_by::text), array_agg(w.due), array_agg(w.id) INTO submitters, firsts, first_ids
    FROM waiting AS w;
    SELECT j.due, j.id INTO background, background_id FROM loracomp.job AS j
    WHERE j.status = 'queued' AND (j.evaluation IS NOT NULL OR j.kind = 'measure' OR j.priority < 0) AND NOT j.scheduled
        AND j.base_model = find_waiting.base_model
        AND (j.due, j.id) >= (
            CASE WHEN whole THEN '-infinity' ELSE (known ->> 'background')::timestamptz END,
            CASE WHEN whole THEN 0 ELSE (known ->> 'background_id')::bigint END
        )
    ORDER BY j.due, j.id LIMIT 1;
    IF whole THEN
        read := read + (SELECT sum(pg_stat_get_xact_tuples_returned(i.index::regclass)) FROM unnest(indexes) AS i (index));
        look_until := now() + least(read * interval '2 microseconds', longest);
        -- Those of whom nothing waits now: their dead entries are passed too.
        names := ARRAY(
            SELECT t.submitted_by::text FROM loracomp.turn AS t
            WHERE read > 1000 AND t.base_model = find_waiting.base_model
            UNION
            SELECT k.submitted_by FROM jsonb_to_recordset(known -> 'firsts') AS k (submitted_by text) WHERE read > 1000
        );
        -- What is remembered costs some entries for each submitter.
        is_dear := read > 1000 + 4 * cardinality(names);
    END IF;
    IF NOT whole OR is_dear THEN
        PERFORM set_config('loracomp.waiting', (remembered || jsonb_build_object(find_waiting.base_model, jsonb_build_object(
            'looked_at', now(),
            -- If all that one call handles was found, there may be more.
            'look_until', CASE WHEN most IN (rescued, woken) THEN now() ELSE look_until END,
            'background', coalesce(background, 'infinity'),
            'background_id', coalesce(background_id, 0),
            'firsts', (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'submitted_by', n.name,
                    'first', least(f.due, certain),
                    'first_id', CASE WHEN f.due < certain THEN f.id ELSE 0 END
                )), '[]')
                FROM (SELECT unnest(submitters) UNION SELECT unnest(names)) AS n (name)
                LEFT JOIN unnest(submitters, firsts, first_ids) AS f (name, due, id) ON f.name = n.name
            )
        )))::text, false);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.find_waiting IS
'Queues jobs whose run_at has come or whose lease has expired, and returns where in the queue jobs of a base model wait: for '
'each submitter the first job. For pick_jobs.';
