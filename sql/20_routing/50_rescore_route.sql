-- Computes how a job would have been routed with other settings, from its stored trace.
--   rescore_route               a job's tasks and weights with changed settings
--     with_settings             the trace's policy with these settings
--     policy_with               or another policy with these settings
--     retrieve_again            if the trace does not contain enough examples
--       eligible_tasks, search_exactly, nearest_examples
--     gains_again               if the trace does not contain the adapters' expected gains
--       eligible_tasks, active_adapters, expected_gains
--     task_weights

-- Changes nothing; reads the stored traces of all jobs with its owner's rights, for analysts and administrators. Tasks that the
-- caller may not know of are shown as labels. It retrieves examples again if the trace is not enough: for a larger k, or other
-- excluded tasks. A job that gave its weights itself keeps them.
CREATE FUNCTION loracomp.rescore_route(
    job bigint, settings jsonb DEFAULT '{}', exclude_tasks text[] DEFAULT NULL, policy text DEFAULT NULL
) RETURNS TABLE (
    task text,
    probability double precision,
    in_nucleus boolean,
    weight double precision,
    expected_gain double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    ids bigint[];
    names text[];
    cosines double precision[];
    gained text[];
    gains double precision[];
    known text[];
    stored jsonb;
    equally boolean;
    before loracomp.policy;
    used loracomp.policy;
    labels CONSTANT jsonb := (SELECT m.labels FROM loracomp.task_mask AS m);
BEGIN
    SELECT
        p.example_ids, p.example_tasks, p.similarities, p.tasks, p.expected_gains, p.policy_settings,
        p.calibration_examples IS NOT NULL
    INTO ids, names, cosines, gained, gains, stored, equally
    FROM loracomp.prediction AS p
    WHERE p.job_id = rescore_route.job AND (
        loracomp.caller_is_admin()
        OR coalesce(pg_has_role(loracomp.caller(), to_regrole('loracomp_analyst'), 'member'), false)
    );
    IF stored IS NULL THEN
        RAISE EXCEPTION 'job % has no prediction', job
            USING ERRCODE = 'no_data_found', HINT = 'bi.prediction lists the jobs that have ended';
    END IF;
    before := jsonb_populate_record(NULL::loracomp.policy, stored);
    used := CASE
        WHEN rescore_route.policy IS NULL THEN loracomp.with_settings(before, rescore_route.settings)
        ELSE loracomp.policy_with(rescore_route.policy, rescore_route.settings)
    END;
    IF EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = rescore_route.job AND j.weights IS NOT NULL) THEN
        -- The job gave the weights itself: no setting changes them.
        RETURN QUERY
        SELECT coalesce(labels ->> u.task, u.task), u.probability, u.weight > 0, u.weight, NULL::double precision
        FROM loracomp.prediction AS p
        CROSS JOIN LATERAL unnest(p.tasks, p.probabilities, p.weights) AS u (task, probability, weight)
        WHERE p.job_id = rescore_route.job;
        RETURN;
    END IF;
    IF used.weighting <> 'measured' THEN
        gains := NULL;
    ELSIF before.weighting <> 'measured' AND rescore_route.exclude_tasks IS NULL THEN
        -- The job's own exclude_tasks had limited the tasks from which its examples were retrieved.
        rescore_route.exclude_tasks := (SELECT j.exclude_tasks FROM loracomp.job AS j WHERE j.id = rescore_route.job);
    END IF;
    IF used.k > before.k OR rescore_route.exclude_tasks IS NOT NULL THEN
        SELECT r.example_ids, r.example_tasks, r.similarities INTO ids, names, cosines
        FROM loracomp.retrieve_again(job, used.k, rescore_route.exclude_tasks, used.weighting = 'measured') AS r;
        gains := NULL;
    END IF;
    IF used.weighting = 'measured' AND (
        gains IS NULL
        OR (used.k, used.temperature, used.gain_prior, used.calibration_rows, used.min_similarity) IS DISTINCT FROM
        (before.k, before.temperature, before.gain_prior, before.calibration_rows, before.min_similarity)
    ) THEN
        SELECT g.tasks, g.gains, g.equally INTO gained, gains, equally
        FROM loracomp.gains_again(job, ids[:used.k], cosines[:used.k], used, rescore_route.exclude_tasks) AS g;
    END IF;
    SELECT coalesce(array_agg(u.name), '{}'), coalesce(array_agg(u.gain), '{}') INTO gained, gains
    FROM unnest(gained, gains) AS u (name, gain) WHERE u.gain IS NOT NULL;
    names := names[:used.k];
    -- task_weights takes task numbers, so each name is replaced by its first position in the array.
    known := names || gained;
    RETURN QUERY
    SELECT
        coalesce(labels ->> known[w.task_id], known[w.task_id]),
        w.probability,
        w.in_nucleus,
        CASE WHEN cosines[1] < used.min_similarity THEN 0 ELSE w.weight END,
        w.expected_gain
    FROM loracomp.task_weights(
        ARRAY(
            SELECT array_position(known, u.name) FROM unnest(names) WITH ORDINALITY AS u (name, place) ORDER BY u.place
        ),
        cosines[:used.k], used,
        ARRAY(
            SELECT array_position(known, u.name) FROM unnest(gained) WITH ORDINALITY AS u (name, place) ORDER BY u.place
        ),
        gains,
        equally
    ) AS w;
END
$$;
COMMENT ON FUNCTION loracomp.rescore_route IS
'Tasks and weights that retrieval would have given a job with other settings, such as {"top_p": 0.9}, or with another policy; '
'other settings are those of the trace. With a larger k or other exclude_tasks, examples are retrieved again with the stored '
'vector, among the current examples. The router does not matter; weights that the job itself gave stay as they are. With weighting measured, expected gains come from the '
'trace, or from current measurements if the trace has none or if k, temperature, gain_prior, calibration_rows or min_similarity '
'differ.';

-- Changes nothing. Retrieves among the current examples that the job's submitter may use, with the vector that the job was
-- routed with. It reads examples with its owner's rights, as route_jobs does.
CREATE FUNCTION loracomp.retrieve_again(
    job bigint,
    k integer,
    exclude_tasks text[],
    or_measured boolean,
    OUT example_ids bigint[],
    OUT example_tasks text[],
    OUT similarities double precision[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
-- The settings of a search: see nearest_examples.
SET enable_seqscan = off
SET jit = off
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
DECLARE
    asked loracomp.job;
    used_encoder text;
    encoder CONSTANT text := (SELECT format('%s/%s', e.name, e.input_version) FROM loracomp.encoder AS e);
    unknown CONSTANT text := loracomp.unknown_tasks(retrieve_again.exclude_tasks);
    eligible integer[];
BEGIN
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'exclude_tasks names tasks that do not exist: %', unknown
            USING ERRCODE = 'no_data_found', HINT = 'remove these names: a task that does not exist is never used';
    END IF;
    SELECT j.* INTO asked FROM loracomp.job AS j WHERE j.id = retrieve_again.job;
    SELECT p.encoder INTO used_encoder FROM loracomp.prediction AS p
    WHERE p.job_id = retrieve_again.job AND p.query_embedding IS NOT NULL;
    IF used_encoder IS NULL THEN
        RAISE EXCEPTION 'job % has no stored embedding to retrieve with', retrieve_again.job
            USING ERRCODE = 'no_data_found', HINT = 'leave out exclude_tasks, and give a k that is not above the stored one';
    END IF;
    IF used_encoder IS DISTINCT FROM encoder THEN
        RAISE EXCEPTION 'job % was embedded by %, and the examples are embedded by %', retrieve_again.job, used_encoder,
            coalesce(encoder, 'none')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'submit the job again to route it anew';
    END IF;
    eligible := loracomp.eligible_tasks(
        asked.base_model, asked.submitted_by,
        coalesce(retrieve_again.exclude_tasks, asked.exclude_tasks), asked.tasks, or_measured
    );
    SELECT
        coalesce(array_agg(x.example_id ORDER BY x.similarity DESC, x.example_id), '{}'),
        coalesce(array_agg(t.name ORDER BY x.similarity DESC, x.example_id), '{}'),
        coalesce(array_agg(x.similarity ORDER BY x.similarity DESC, x.example_id), '{}')
    INTO example_ids, example_tasks, similarities
    FROM loracomp.prediction AS p
    CROSS JOIN LATERAL loracomp.nearest_examples(
        p.query_embedding, eligible, retrieve_again.k, loracomp.search_exactly(eligible)
    ) AS x
    JOIN loracomp.task AS t ON t.id = x.task_id
    WHERE p.job_id = retrieve_again.job AND x.similarity <> 'NaN';
END
$$;
COMMENT ON FUNCTION loracomp.retrieve_again IS
'The k train examples that are nearest to a job''s stored vector, nearest first, with tasks and cosine similarities, among the '
'tasks that its submitter may use except exclude_tasks (null: the job''s own exclude_tasks).';

-- Changes nothing. Reads the current measurements of the adapters that the job's submitter may use.
CREATE FUNCTION loracomp.gains_again(
    job bigint,
    example_ids bigint[],
    similarities double precision[],
    settings loracomp.policy,
    exclude_tasks text[],
    OUT tasks text[],
    OUT gains double precision[],
    OUT equally boolean
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT
        coalesce(array_agg(t.name ORDER BY g.gain DESC, t.name), '{}'),
        coalesce(array_agg(g.gain ORDER BY g.gain DESC, t.name), '{}'),
        coalesce(bool_or(c.examples IS NOT NULL), FALSE)
    FROM loracomp.job AS j
    CROSS JOIN LATERAL loracomp.active_adapters(
        j.base_model,
        loracomp.eligible_tasks(
            j.base_model, j.submitted_by,
            coalesce(gains_again.exclude_tasks, j.exclude_tasks), j.tasks
        )
    ) AS a
    CROSS JOIN LATERAL (
        SELECT loracomp.calibration_examples(
            j.choices, e.task_id, gains_again.similarities[1], a.adapter_ids, gains_again.settings
        ) AS examples
        FROM (VALUES (gains_again.example_ids[1])) AS nearest (id)
        LEFT JOIN loracomp.example AS e
            ON e.id = nearest.id AND j.system_text IS NULL AND e.task_id <> ALL (a.adapter_tasks)
        OFFSET 0
    ) AS c
    CROSS JOIN LATERAL loracomp.expected_gains(
        coalesce(c.examples, gains_again.example_ids),
        CASE
            WHEN c.examples IS NULL THEN gains_again.similarities
            ELSE array_fill(1.0, ARRAY[cardinality(c.examples)])
        END,
        a.adapter_ids, a.adapter_tasks, gains_again.settings
    ) AS g
    JOIN loracomp.task AS t ON t.id = g.task_id
    WHERE j.id = gains_again.job;
$$;
COMMENT ON FUNCTION loracomp.gains_again IS
'Expected gains by these examples and the current measurements, largest first, of the adapters that a job''s submitter may use, '
'except those of exclude_tasks (null: the job''s own exclude_tasks). equally: the job''s choices are calibrated.';
