-- Where in the queue's index jobs wait.
--   find_waiting                called by pick_jobs
--   trigger note_arrival        stores which transaction queued a job, so that find_waiting finds new jobs

-- Where jobs of a base model wait, as stretches of the queue's index. Each stretch belongs to a submitter and begins at its first
-- job that still waits (firsts, first_ids) and ends at a `due` (lasts); together they contain all queued jobs. A reader that starts
-- there reads no dead entries before that job. The session remembers the stretches and which transactions it could not see yet. The
-- next call adds the jobs that these transactions have queued (job.arrived), whatever their `due`, and moves the start of each
-- stretch to the first job that still waits.
CREATE FUNCTION loracomp.find_waiting(
    base_model text, OUT submitters text[], OUT firsts timestamptz[], OUT first_ids bigint[], OUT lasts timestamptz[]
)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
-- As in pick_jobs.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
AS $$
DECLARE
    known CONSTANT jsonb := nullif(current_setting('loracomp.waiting', true), '');
    -- Not newer than the snapshots of the statements below.
    seen CONSTANT pg_snapshot := pg_current_snapshot();
    running CONSTANT xid8[] := ARRAY(SELECT pg_snapshot_xip(seen));
    unseen CONSTANT xid8 := known ->> 'unseen';
    ended CONSTANT xid8[] := ARRAY(
        SELECT r.xid::xid8 FROM jsonb_array_elements_text(known -> 'running') AS r (xid) EXCEPT SELECT unnest(running)
    );
BEGIN
    IF known ->> 'base_model' = find_waiting.base_model THEN
        WITH RECURSIVE arrived (up_to, xid, submitted_by, due) AS (
            -- For each of these transactions, jump through the index from one submitter to the next.
            SELECT x.last, n.*
            FROM (
                SELECT unseen AS first, '18446744073709551615'::xid8 AS last
                UNION ALL
                SELECT e.xid, e.xid FROM unnest(ended) AS e (xid)
            ) AS x
            CROSS JOIN LATERAL (
                SELECT j.arrived, j.submitted_by, j.due FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = find_waiting.base_model
                    AND j.arrived >= x.first AND j.arrived <= x.last
                ORDER BY j.arrived, j.submitted_by, j.due LIMIT 1
            ) AS n
            UNION ALL
            SELECT a.up_to, n.*
            FROM arrived AS a
            CROSS JOIN LATERAL (
                SELECT j.arrived, j.submitted_by, j.due FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = find_waiting.base_model
                    AND (j.arrived, j.submitted_by) > (a.xid, a.submitted_by) AND j.arrived <= a.up_to
                ORDER BY j.arrived, j.submitted_by, j.due LIMIT 1
            ) AS n
        ),
        stretch AS (
            SELECT k.submitted_by::name, k.first, k.first_id, k.last
            FROM jsonb_to_recordset(known -> 'stretches')
                AS k (submitted_by text, first timestamptz, first_id bigint, last timestamptz)
            UNION ALL
            SELECT a.submitted_by, a.due, 0, m.due
            FROM arrived AS a
            CROSS JOIN LATERAL (
                SELECT j.due FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = find_waiting.base_model
                    AND j.arrived = a.xid AND j.submitted_by = a.submitted_by
                ORDER BY j.arrived DESC, j.submitted_by DESC, j.due DESC LIMIT 1
            ) AS m
        ),
        -- Stretches that overlap get the same number.
        numbered AS (
            SELECT s.*, count(*) FILTER (WHERE s.begins) OVER w AS number
            FROM (
                SELECT
                    t.*,
                    (t.first <= max(t.last) OVER (
                        PARTITION BY t.submitted_by ORDER BY t.first, t.first_id
                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    )) IS NOT TRUE AS begins
                FROM stretch AS t
            ) AS s
            WINDOW w AS (PARTITION BY s.submitted_by ORDER BY s.first, s.first_id)
        ),
        joined AS (
            SELECT
                n.submitted_by,
                min(n.first) AS first,
                (array_agg(n.first_id ORDER BY n.first, n.first_id))[1] AS first_id,
                max(n.last) AS last
            FROM (SELECT m.*, max(m.number) OVER (PARTITION BY m.submitted_by) AS numbers FROM numbered AS m) AS n
            -- Each stretch costs a read of the index. If there are many, join all but the last, which has most of the queue.
            GROUP BY n.submitted_by, CASE WHEN n.numbers <= 16 OR n.number = n.numbers THEN n.number ELSE 1 END
        )
        SELECT
            array_agg(j.submitted_by::text), array_agg(f.due), array_agg(f.id), array_agg(j.last)
        INTO submitters, firsts, first_ids, lasts
        FROM joined AS j
        CROSS JOIN LATERAL (
            SELECT q.due, q.id FROM loracomp.job AS q
            WHERE q.status = 'queued' AND NOT q.scheduled AND q.base_model = find_waiting.base_model
                AND q.submitted_by = j.submitted_by AND (q.due, q.id) >= (j.first, j.first_id) AND q.due <= j.last
            ORDER BY q.due, q.id LIMIT 1
        ) AS f;
    ELSE
        -- Find the submitters by jumping through the index from one to the next.
        WITH RECURSIVE waiting (submitted_by, due, id) AS (
            (
                SELECT j.submitted_by, j.due, j.id FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = find_waiting.base_model
                ORDER BY j.submitted_by, j.due, j.id LIMIT 1
            )
            UNION ALL
            SELECT n.*
            FROM waiting AS w
            CROSS JOIN LATERAL (
                SELECT j.submitted_by, j.due, j.id FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = find_waiting.base_model
                    AND j.submitted_by > w.submitted_by
                ORDER BY j.submitted_by, j.due, j.id LIMIT 1
            ) AS n
        )
        SELECT array_agg(w.submitted_by::text), array_agg(w.due), array_agg(w.id), array_agg('infinity'::timestamptz)
        INTO submitters, firsts, first_ids, lasts
        FROM waiting AS w;
    END IF;
    PERFORM set_config('loracomp.waiting', jsonb_build_object(
        'base_model', find_waiting.base_model,
        'unseen', pg_snapshot_xmax(seen),
        -- The own transaction is one of them, if it has an id already: it may queue more jobs.
        'running', to_jsonb(array_remove(running || pg_current_xact_id_if_assigned(), NULL)),
        'stretches', (
            SELECT coalesce(jsonb_agg(u), '[]')
            FROM unnest(submitters, firsts, first_ids, lasts) AS u (submitted_by, first, first_id, last)
        )
    )::text, false);
END
$$;
COMMENT ON FUNCTION loracomp.find_waiting IS
'Where in the queue''s index jobs of a base model wait: for each submitter from which job, and up to which due. For pick_jobs.';

-- Stores in a job that an UPDATE queues, or moves in the queue, the id of the transaction, for find_waiting. For a new job the
-- column's default does this.
CREATE FUNCTION loracomp.note_arrival() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    new.arrived := pg_current_xact_id();
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.note_arrival IS 'Trigger: stores the transaction that queued a job or moved it in the queue.';

CREATE TRIGGER note_arrival BEFORE UPDATE ON loracomp.job
FOR EACH ROW WHEN (new.status = 'queued') EXECUTE FUNCTION loracomp.note_arrival();
COMMENT ON TRIGGER note_arrival ON loracomp.job IS 'Stores the transaction that queued a job or moved it in the queue.';
