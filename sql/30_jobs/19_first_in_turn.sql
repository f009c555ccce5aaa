-- drop: DROP FUNCTION IF EXISTS loracomp.first_in_turn(text, integer)
-- Reads only: the due jobs that come first. A submitter's own jobs go by due, and submitters take turns: a job's wait counts
-- from when its submitter was last served, so that a million rows of one keep nobody else waiting; a step of priority is
-- worth a minute of that wait.
-- Of many submitters it reads few jobs each: an even share at first, then more of those alone whose whole share was first.
CREATE FUNCTION loracomp.first_in_turn(base_model text, most integer)
RETURNS TABLE (id bigint, submitted_by name, turn integer, place bigint)
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
-- The same plan, made once, whatever the statistics say, which lag behind a queue: index scans that stop early.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
-- In the order of the queue's own index, where another would do beside a sort: that of idempotency keys holds all jobs.
SET enable_sort = off
SET enable_incremental_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    -- Jumps through the index from one submitter to the next.
    submitters name[] := ARRAY(
        WITH RECURSIVE waiting (submitted_by) AS (
            (
                SELECT j.submitted_by FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = first_in_turn.base_model
                ORDER BY j.submitted_by, j.due LIMIT 1
            )
            UNION ALL
            SELECT (
                SELECT j.submitted_by FROM loracomp.job AS j
                WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = first_in_turn.base_model
                    AND j.submitted_by > w.submitted_by
                ORDER BY j.submitted_by, j.due LIMIT 1
            )
            FROM waiting AS w WHERE w.submitted_by IS NOT NULL
        )
        SELECT w.submitted_by FROM waiting AS w WHERE w.submitted_by IS NOT NULL
    );
    -- Two more than an even share, rounded down: where all ask the same, nobody's whole share is first.
    share integer := least(first_in_turn.most, first_in_turn.most / greatest(cardinality(submitters), 1) + 2);
    shares integer[] := array_fill(share, ARRAY[cardinality(submitters)]);
    ids bigint[];
    names name[];
    turns integer[];
    deeper integer;
    next_share integer;
BEGIN
    LOOP
        SELECT array_agg(f.id), array_agg(f.submitted_by), array_agg(f.turn) INTO ids, names, turns
        FROM (
            SELECT h.id, s.submitted_by, h.turn
            FROM unnest(submitters, shares) AS s (submitted_by, share)
            LEFT JOIN loracomp.turn AS t
                ON t.base_model = first_in_turn.base_model AND t.submitted_by = s.submitted_by
            CROSS JOIN LATERAL (
                -- Later jobs of a submitter are served at this claim's turn at the earliest. The maximum keeps their order.
                SELECT d.id, d.due, d.turn, max(
                    d.due + greatest(interval '0', CASE d.turn WHEN 1 THEN t.served_at ELSE now() END - d.run_at)
                ) OVER (ORDER BY d.turn) AS place
                FROM (
                    -- Jobs of evaluations are due later than others.
                    SELECT j.id, j.due, j.run_at, row_number() OVER (ORDER BY j.due, j.id)::integer AS turn
                    FROM loracomp.job AS j
                    WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = first_in_turn.base_model
                        AND j.submitted_by = s.submitted_by AND j.due <= now()
                    ORDER BY j.due, j.id LIMIT s.share
                ) AS d
            ) AS h
            ORDER BY h.place, h.turn, h.due, h.id LIMIT first_in_turn.most
        ) AS f;
        EXIT WHEN share = first_in_turn.most OR names IS NULL;
        -- Of the others what is there is enough: what is read beside it can only come before it.
        SELECT array_agg(n.name), array_agg(n.taken), count(*) FILTER (WHERE n.taken = share)
        INTO submitters, shares, deeper
        FROM (SELECT u.name, count(*)::integer AS taken FROM unnest(names) AS u (name) GROUP BY u.name) AS n;
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
'The due jobs of a base model that come first, fairly among submitters, no more than `most`. For pick_jobs.';
