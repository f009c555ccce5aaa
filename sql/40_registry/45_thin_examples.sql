-- Fewer examples, for a smaller index: docs/routing.md says how few are enough.
--   thin_examples
--     check_task_exists, check_range
--     routed_to_own_task        how often routing still finds the task of an example that is gone

-- Changes nothing. Routes each vector among today's examples of all tasks, with the settings of the policy default.
CREATE FUNCTION loracomp.routed_to_own_task(asked loracomp.example_embedding[])
RETURNS TABLE (task_id integer, as_first bigint, in_nucleus bigint)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
-- The settings of a search: see nearest_examples.
SET enable_seqscan = off
SET jit = off
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
    WITH scope AS MATERIALIZED (
        SELECT a.tasks, loracomp.search_exactly(a.tasks) AS exact, a.settings
        FROM (
            SELECT p AS settings, ARRAY(SELECT t.id FROM loracomp.task AS t ORDER BY t.id) AS tasks
            FROM loracomp.policy AS p WHERE p.name = 'default'
        ) AS a
    )
    SELECT
        v.task_id,
        count(*) FILTER (WHERE r.task_ids[1] = v.task_id),
        count(*) FILTER (WHERE r.in_nucleus[array_position(r.task_ids, v.task_id)])
    FROM unnest(asked) AS v
    CROSS JOIN scope AS s
    CROSS JOIN LATERAL loracomp.route_query(v.embedding, s.tasks, s.exact, s.settings, '{}', '{}') AS r
    GROUP BY v.task_id;
$$;
COMMENT ON FUNCTION loracomp.routed_to_own_task IS
'For each task of these vectors, how many are routed to it first, and how many with it in the nucleus, under the policy default.';

-- Deletes train examples, with their embeddings and measurements, until no task has more than `keep` that are embedded. Keeps
-- measured ones first, then in the order of content_hash, which is a random order. Of those that go, a tenth of a task's
-- examples, at most 200, are deleted first and routed twice: among all others, and at the end.
CREATE FUNCTION loracomp.thin_examples(keep integer, task text DEFAULT NULL)
RETURNS TABLE (
    own_task text,
    kept bigint,
    deleted bigint,
    measured bigint,
    without_text bigint,
    asked bigint,
    first_before bigint,
    first_after bigint,
    in_nucleus_before bigint,
    in_nucleus_after bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    gone bigint[];
    gone_tasks integer[];
    are_measured boolean[];
    are_bare boolean[];
    asking loracomp.example_embedding[];
    before jsonb;
    after jsonb;
BEGIN
    IF thin_examples.keep IS NULL THEN
        RAISE EXCEPTION 'keep must not be null'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'say how many embedded examples a task may keep';
    END IF;
    PERFORM loracomp.check_range('keep', thin_examples.keep, 1, 1000000000);
    PERFORM loracomp.check_task_exists(thin_examples.task);
    -- Locked against imports, as by find_task.
    PERFORM FROM loracomp.task AS t WHERE t.name = coalesce(thin_examples.task, t.name) ORDER BY t.id FOR UPDATE;
    WITH known AS (
        SELECT v, e.content_hash, e.prompt IS NULL AS is_bare,
            EXISTS (SELECT FROM loracomp.measurement AS m WHERE m.example_id = v.example_id) AS is_measured
        FROM loracomp.example_embedding AS v
        JOIN loracomp.example AS e ON e.id = v.example_id
        JOIN loracomp.task AS t ON t.id = v.task_id
        WHERE t.name = coalesce(thin_examples.task, t.name)
    ), placed AS (
        SELECT k.*, count(*) OVER (PARTITION BY (k.v).task_id) AS among,
            row_number() OVER (PARTITION BY (k.v).task_id ORDER BY k.is_measured DESC, k.content_hash) AS place
        FROM known AS k
    )
    SELECT
        coalesce(array_agg((p.v).example_id), '{}'), array_agg((p.v).task_id), array_agg(p.is_measured),
        array_agg(p.is_bare),
        coalesce(array_agg(p.v) FILTER (WHERE p.place > p.among - least(200, ceil(p.among / 10.0))), '{}')
    INTO gone, gone_tasks, are_measured, are_bare, asking
    FROM placed AS p WHERE p.place > thin_examples.keep;
    DELETE FROM loracomp.example AS e WHERE e.id IN (SELECT a.example_id FROM unnest(asking) AS a);
    before := (SELECT jsonb_object_agg(r.task_id, to_jsonb(r)) FROM loracomp.routed_to_own_task(asking) AS r);
    DELETE FROM loracomp.example AS e WHERE e.id = ANY (gone);
    after := (SELECT jsonb_object_agg(r.task_id, to_jsonb(r)) FROM loracomp.routed_to_own_task(asking) AS r);
    RETURN QUERY
    SELECT
        t.name,
        (SELECT count(*) FROM loracomp.example_embedding AS v WHERE v.task_id = t.id),
        count(*), count(*) FILTER (WHERE g.is_measured), count(*) FILTER (WHERE g.is_bare),
        (SELECT count(*) FROM unnest(asking) AS a WHERE a.task_id = t.id),
        (before -> t.id::text ->> 'as_first')::bigint, (after -> t.id::text ->> 'as_first')::bigint,
        (before -> t.id::text ->> 'in_nucleus')::bigint, (after -> t.id::text ->> 'in_nucleus')::bigint
    FROM unnest(gone_tasks, are_measured, are_bare) AS g (task_id, is_measured, is_bare)
    JOIN loracomp.task AS t ON t.id = g.task_id
    GROUP BY t.id
    ORDER BY t.name;
END
$$;
COMMENT ON FUNCTION loracomp.thin_examples IS
'Deletes train examples until a task, or each (null), has at most keep that are embedded; measured ones go last. For each task '
'that loses some: how many it keeps and lost, how many of these were measured or had no text; and of a sample of them, how many '
'routing leads to the task first, or has it in the nucleus, before and after. Roll back to see only that.';
