-- Retrieval: from a query's vector to the nearest examples of the tasks that its submitter may use.
--   checked_embedding           a vector in half precision; raises if it is null or has the wrong number of dimensions
--     embedding_dimensions
--   check_encoder               raises if the vector comes from another encoder than the examples' vectors
--   usable_tasks                the tasks that a submitter's jobs may use at all
--   narrowed_tasks              the usable tasks that a job names, if it names any, and does not exclude
--   active_adapters             the active adapters of these tasks
--   search_exactly              whether to scan these tasks' examples instead of using the index
--   nearest_examples            the k nearest examples of these tasks

-- Changes nothing. The norm is not checked. It is written in PL/pgSQL, so that a vector is converted once, and not for each example.
CREATE FUNCTION loracomp.checked_embedding(embedding public.vector) RETURNS public.halfvec
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    dimensions CONSTANT integer := cardinality(embedding::real[]);
BEGIN
    IF embedding IS NULL THEN
        RAISE EXCEPTION 'embedding must not be null'
            USING ERRCODE = 'null_value_not_allowed', HINT = 'embed the text with the database''s encoder';
    END IF;
    IF dimensions <> loracomp.embedding_dimensions() THEN
        RAISE EXCEPTION 'embedding has % dimensions; this database holds vectors of %',
            dimensions, loracomp.embedding_dimensions()
            USING ERRCODE = 'invalid_parameter_value', HINT = 'embed the text with the database''s encoder';
    END IF;
    RETURN embedding;
END
$$;
COMMENT ON FUNCTION loracomp.checked_embedding IS
'The vector in half precision, as examples have it; or an error, if it is null or has another number of dimensions '
'than the database''s encoder makes.';

-- Changes nothing. It is volatile, so that it sees a change of the encoder for which the calling statement has waited.
CREATE FUNCTION loracomp.check_encoder(encoder text, input_version smallint) RETURNS boolean
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF check_encoder.encoder IS NOT NULL AND NOT EXISTS (
        SELECT FROM loracomp.encoder AS e
        WHERE (e.identity, e.input_version) = (check_encoder.encoder, check_encoder.input_version)
    ) THEN
        RAISE EXCEPTION 'the database''s encoder is no longer the one that these vectors come from'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'start the worker again, so that it loads the new one';
    END IF;
    IF EXISTS (SELECT FROM loracomp.encoder AS e WHERE NOT e.is_ready) THEN
        RAISE EXCEPTION 'the examples are being embedded by another encoder'
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'wait until loracomp encoder set has ended; loracomp encoder show says how many examples are left';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_encoder IS
'True, or an error if the database''s encoder or its input format is not the one that made the vectors (null: not checked), or if '
'the examples are being embedded by another one.';

-- Changes nothing.
CREATE FUNCTION loracomp.usable_tasks(base_model text, submitter name, or_measured boolean) RETURNS integer[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(array_agg(t.id ORDER BY t.id), '{}')
    FROM loracomp.task AS t
    WHERE (
        EXISTS (
            SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id
            WHERE a.task_id = t.id AND a.status = 'active' AND b.name = usable_tasks.base_model
        )
        OR (or_measured AND EXISTS (
            SELECT FROM loracomp.measurement AS m JOIN loracomp.base_model AS b ON b.id = m.base_model_id
            WHERE m.task_id = t.id AND b.name = usable_tasks.base_model
        ))
    )
    AND to_regrole(quote_ident(submitter)) IS NOT NULL
    AND (t.reader_role IS NULL OR t.reader_role IN (SELECT loracomp.readable_roles(submitter)));
END;
COMMENT ON FUNCTION loracomp.usable_tasks IS
'Tasks that a submitter''s jobs may use, in order of their ids: with an active adapter for the base model (or, if wanted, '
'measured examples), and readable by the submitter. A dropped role can read no tasks.';

-- Changes nothing. Names are looked up first, because there may be thousands of tasks.
CREATE FUNCTION loracomp.narrowed_tasks(tasks integer[], excluded text[], named text[]) RETURNS integer[]
LANGUAGE sql STABLE
RETURN CASE
    WHEN named <> '{}' THEN ARRAY(
        SELECT t.id FROM loracomp.task AS t
        WHERE t.name = ANY (named) AND t.name <> ALL (coalesce(excluded, '{}'))
            AND tasks[width_bucket(t.id, tasks)] = t.id -- bisection
        ORDER BY t.id
    )
    WHEN excluded <> '{}' THEN ARRAY(
        SELECT u.id FROM unnest(tasks) AS u (id)
        WHERE u.id <> ALL (ARRAY(SELECT t.id FROM loracomp.task AS t WHERE t.name = ANY (excluded)))
        ORDER BY u.id
    )
    ELSE tasks
END;
COMMENT ON FUNCTION loracomp.narrowed_tasks IS
'The tasks that are named (if none are named, all of these tasks) and not excluded, in order of their ids, as tasks must be.';

-- Changes nothing. A join, because ANY would compare each adapter with each task.
CREATE FUNCTION loracomp.active_adapters(
    base_model text, tasks integer[], OUT adapter_ids integer[], OUT adapter_tasks integer[]
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(array_agg(a.id ORDER BY a.id), '{}'), coalesce(array_agg(a.task_id ORDER BY a.id), '{}')
    FROM loracomp.adapter AS a
    JOIN loracomp.base_model AS b ON b.id = a.base_model_id
    JOIN unnest(active_adapters.tasks) AS u (task_id) ON u.task_id = a.task_id
    WHERE b.name = active_adapters.base_model AND a.status = 'active';
END;
COMMENT ON FUNCTION loracomp.active_adapters IS 'The active adapters of these tasks for a base model, each with its task.';

-- Changes nothing; reads at most 4,001 entries of an index.
CREATE FUNCTION loracomp.search_exactly(tasks integer[]) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- Scanning 4,000 takes some 2 ms. HNSW would have to discard the rows of other tasks, and would miss some neighbours.
    -- (SELECT tasks), because the planner would estimate how many rows each task of a constant array has, which takes ten times as
    -- long as the scan if there are thousands.
    SELECT NOT EXISTS (
        SELECT FROM loracomp.example_embedding AS e
        WHERE e.task_id = ANY ((SELECT tasks)::integer[]) LIMIT 1 OFFSET 4000
    );
END;
COMMENT ON FUNCTION loracomp.search_exactly IS
'Whether these tasks have so few examples (4,000 at most) that an exact scan is the better search.';

-- Changes nothing. One of two searches is executed: in the HNSW index, or among all examples of the tasks (exact).
-- The query is written so that its plan does not depend on statistics and parameters (a test checks this):
--   width_bucket keeps the HNSW branch from using the btree. It finds a task by bisection, so the tasks must be sorted; ANY would
--   compare all of them.
--   distance + 0 keeps the exact branch from using HNSW.
--   The LIMIT is constant, for the largest k of a policy, because for a variable one the planner would assume a tenth of the table.
-- An HNSW scan is lazy, so only 2 * k rows are read. The nearest k of these are returned, because a relaxed scan that goes on until it
-- has enough eligible rows returns them out of order. With a million examples, 10 % of them eligible, the first k rows contain 97.6 %
-- of the nearest k, and the first 2 * k rows 99.2 %.
-- The following settings are set on the functions that call this one. This function has no settings itself, because Postgres doesn't inline a
-- function with settings, and a search would take about a tenth longer (measured roughly).
--   enable_seqscan = off: for 4,000 to some 10,000 examples the planner would choose a sequential scan, ten times slower.
--   jit = off: a scan that enable_seqscan = off cannot avoid gets a cost at which the server would compile the query.
--   hnsw.max_scan_tuples: with the default of 20,000 the scan would end before it finds enough eligible neighbours.
--   hnsw.ef_search: tune_routing sets it by the size of the table.
CREATE FUNCTION loracomp.nearest_examples(q public.halfvec, tasks integer[], k integer, exact boolean)
RETURNS TABLE (example_id bigint, task_id integer, similarity double precision)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 20
BEGIN ATOMIC
    (
        SELECT r.example_id, r.task_id, r.similarity
        FROM (
            SELECT h.example_id, h.task_id, h.similarity
            FROM (
                SELECT e.example_id, e.task_id, 1 - (e.embedding OPERATOR (public.<=>) q) AS similarity
                FROM loracomp.example_embedding AS e
                WHERE NOT exact AND tasks[width_bucket(e.task_id, tasks)] = e.task_id
                ORDER BY e.embedding OPERATOR (public.<=>) q
                LIMIT 400
            ) AS h
            LIMIT 2 * k
        ) AS r
        ORDER BY r.similarity DESC, r.example_id
        LIMIT k
    )
    UNION ALL
    (
        SELECT e.example_id, e.task_id, 1 - (e.embedding OPERATOR (public.<=>) q)
        FROM loracomp.example_embedding AS e
        WHERE exact AND e.task_id = ANY (tasks)
        ORDER BY (e.embedding OPERATOR (public.<=>) q) + 0, e.example_id
        LIMIT k
    );
END;
COMMENT ON FUNCTION loracomp.nearest_examples IS
'The k (at most 200) train examples of these tasks (in order of their ids) that are nearest to q by cosine similarity, in no '
'particular order; a few of these may be missed, except in an exact search.';
