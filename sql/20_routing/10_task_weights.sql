-- What routing's settings are, which values they may have, and what they make of retrieved examples. Live routing and the
-- re-scoring of stored traces share it; a setting passes through them inside its policy. Nothing here changes a table.
--   task_weights                examples' tasks and similarities (and gains) to tasks, probabilities and weights
--     check_similarities
--     check_gains
--     check_routing_settings    the range of each setting
--     relative_share
--   expected_gains              what measured examples make of each adapter, for weighting 'measured'
--     relative_share            an example's part in the softmax, before it is divided by the sum
--   policy_with                 a named policy with some settings replaced
--     with_settings             a policy with some settings replaced

CREATE FUNCTION loracomp.check_routing_settings(settings loracomp.policy) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    -- BETWEEN, because NaN passes a bare comparison; IS NOT TRUE, because null passes a CASE.
    wrong CONSTANT text := CASE
        WHEN (settings.k BETWEEN 1 AND 200) IS NOT TRUE THEN format('k must be between 1 and 200, not %s', settings.k)
        WHEN (settings.temperature BETWEEN 0.0001 AND 100) IS NOT TRUE
            THEN format('temperature must be between 0.0001 and 100, not %s', settings.temperature)
        WHEN (settings.top_p BETWEEN 0.0001 AND 1) IS NOT TRUE
            THEN format('top_p must be between 0.0001 and 1, not %s', settings.top_p)
        WHEN (settings.max_adapters BETWEEN 1 AND 64) IS NOT TRUE
            THEN format('max_adapters must be between 1 and 64, not %s', settings.max_adapters)
        WHEN (settings.weighting IN ('similarity', 'uniform', 'measured')) IS NOT TRUE
            THEN format('weighting must be similarity, uniform or measured, not %s', settings.weighting)
        WHEN (settings.gain_prior BETWEEN 0 AND 1000) IS NOT TRUE
            THEN format('gain_prior must be between 0 and 1000, not %s', settings.gain_prior)
        WHEN (settings.gain_margin BETWEEN -1000 AND 1000) IS NOT TRUE
            THEN format('gain_margin must be between -1000 and 1000, not %s', settings.gain_margin)
        WHEN (settings.min_share BETWEEN 0 AND 1) IS NOT TRUE
            THEN format('min_share must be between 0 and 1, not %s', settings.min_share)
        WHEN (settings.min_similarity BETWEEN -1 AND 1) IS NOT TRUE
            THEN format('min_similarity must be between -1 and 1, not %s', settings.min_similarity)
    END;
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = wrong, ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_routing_settings IS
'True, or an error that names the setting which is out of the range that loracomp.policy allows.';

CREATE FUNCTION loracomp.with_settings(policy loracomp.policy, settings jsonb) RETURNS loracomp.policy
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    known CONSTANT text[] := '{k,temperature,top_p,max_adapters,min_share,weighting,gain_prior,gain_margin,min_similarity}';
    used loracomp.policy := with_settings.policy;
    setting text;
    wanted jsonb;
BEGIN
    IF jsonb_typeof(with_settings.settings) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'settings must be a JSON object, such as {"top_p": 0.9}'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR setting, wanted IN SELECT s.key, s.value FROM jsonb_each(with_settings.settings) AS s LOOP
        IF setting <> ALL (known) THEN
            RAISE EXCEPTION 'settings must not hold %: routing has the settings %', left(setting, 100),
                array_to_string(known, ', ') USING ERRCODE = 'invalid_parameter_value';
        END IF;
        BEGIN
            used := jsonb_populate_record(used, jsonb_build_object(setting, wanted));
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION '% must be of type %, not %', setting, (
                SELECT format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = 'loracomp.policy'::regclass AND a.attname = setting
            ), left(wanted::text, 100) USING ERRCODE = 'invalid_parameter_value';
        END;
    END LOOP;
    PERFORM loracomp.check_routing_settings(used);
    RETURN used;
END
$$;
COMMENT ON FUNCTION loracomp.with_settings IS
'A policy with some of its routing settings replaced, such as {"top_p": 0.9}; an error names a setting that routing does not '
'have, or what its value may be.';

CREATE FUNCTION loracomp.policy_with(policy text DEFAULT 'default', settings jsonb DEFAULT '{}') RETURNS loracomp.policy
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    used loracomp.policy;
BEGIN
    SELECT p.* INTO used FROM loracomp.policy AS p WHERE p.name = policy_with.policy;
    IF used.name IS NULL THEN
        RAISE EXCEPTION 'there is no policy %', policy_with.policy
            USING ERRCODE = 'no_data_found', HINT = 'loracomp policy list names those that there are';
    END IF;
    RETURN loracomp.with_settings(used, policy_with.settings);
END
$$;
COMMENT ON FUNCTION loracomp.policy_with IS
'The policy of that name, with some of its routing settings replaced: what task_weights takes.';

CREATE FUNCTION loracomp.check_similarities(tasks integer[], similarities double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF cardinality(tasks) <> cardinality(similarities) THEN
        RAISE EXCEPTION 'tasks and similarities must have the same length, not % and %',
            cardinality(tasks), cardinality(similarities) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (-2 < ALL (similarities) AND 2 > ALL (similarities)) IS NOT TRUE OR array_position(tasks, NULL) > 0 THEN
        RAISE EXCEPTION 'tasks must not hold null, and similarities must be cosines: neither null nor NaN'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_similarities IS
'True, or an error where the arrays are not one task and one cosine similarity for each retrieved example.';

CREATE FUNCTION loracomp.check_gains(tasks integer[], gains double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF (cardinality(tasks) = cardinality(gains) AND -1e9 < ALL (gains) AND 1e9 > ALL (gains)) IS NOT TRUE THEN
        RAISE EXCEPTION 'gained_tasks and gains must be one task and one finite number for each measured task'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_gains IS
'True, or an error where the arrays are not one task and one number for each measured task.';

-- Computes only. exp raises an underflow below -745, so the exponent is clamped.
CREATE FUNCTION loracomp.relative_share(
    similarity double precision, highest double precision, temperature double precision
) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN exp(greatest((similarity - highest) / temperature, -700));
COMMENT ON FUNCTION loracomp.relative_share IS
'An example''s share in the softmax over similarities, relative to that of the most similar one.';

-- Reads measurements of the examples. An adapter belongs to one base model, so what it has gained does too.
CREATE FUNCTION loracomp.expected_gains(
    example_ids bigint[],
    similarities double precision[],
    usable_adapters integer[],
    adapter_tasks integer[],
    settings loracomp.policy
) RETURNS TABLE (task_id integer, gain double precision)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 30
BEGIN ATOMIC
    WITH example AS (
        SELECT
            u.example_id,
            loracomp.relative_share(u.similarity, max(u.similarity) OVER (), (settings).temperature) AS e
        FROM unnest(example_ids, similarities) AS u (example_id, similarity)
    ), share AS (
        SELECT x.example_id, x.e / sum(x.e) OVER () AS e FROM example AS x
    )
    SELECT a.task_id, sum(s.e * g.gain) / (sum(s.e) + (settings).gain_prior)
    FROM share AS s
    JOIN loracomp.measurement AS m ON m.example_id = s.example_id
    CROSS JOIN LATERAL unnest(m.adapter_ids, m.gains) AS g (adapter_id, gain)
    JOIN unnest(usable_adapters, adapter_tasks) AS a (adapter_id, task_id) ON a.adapter_id = g.adapter_id
    GROUP BY a.task_id;
END;
COMMENT ON FUNCTION loracomp.expected_gains IS
'What retrieved examples that are measured expect of each of these adapters: the mean of its gains, weighted by the softmax '
'over similarities and drawn towards 0 by gain_prior; a row for each task with a measured adapter.';

CREATE FUNCTION loracomp.task_weights(
    tasks integer[],
    similarities double precision[],
    settings loracomp.policy,
    gained_tasks integer[] DEFAULT '{}',
    gains double precision[] DEFAULT '{}'
)
RETURNS TABLE (
    task_id integer,
    probability double precision,
    in_nucleus boolean,
    weight double precision,
    expected_gain double precision
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 5
BEGIN ATOMIC
    WITH example AS (
        SELECT
            u.task_id,
            row_number() OVER (ORDER BY u.similarity DESC, u.place) AS rank,
            loracomp.relative_share(u.similarity, max(u.similarity) OVER (), (settings).temperature) AS e
        FROM unnest(tasks, similarities) WITH ORDINALITY AS u (task_id, similarity, place)
        WHERE loracomp.check_routing_settings(settings) AND loracomp.check_similarities(tasks, similarities)
    ), mass AS (
        SELECT x.task_id, min(x.rank) AS best, sum(x.e) / sum(sum(x.e)) OVER () AS mass
        FROM example AS x
        GROUP BY x.task_id
    ), ranked AS (
        -- Rounded, so that the last bit of a sum breaks no tie.
        SELECT m.task_id, m.mass, row_number() OVER (ORDER BY round(m.mass::numeric, 12) DESC, m.best) AS rank
        FROM mass AS m
    ), cumulated AS (
        SELECT
            r.task_id,
            r.rank,
            r.mass AS p,
            sum(r.mass) OVER (ORDER BY r.rank) AS mass
        FROM ranked AS r
    ), gained AS (
        SELECT u.task_id, u.gain, row_number() OVER (ORDER BY u.gain DESC, u.place) AS rank
        FROM unnest(gained_tasks, gains) WITH ORDINALITY AS u (task_id, gain, place)
        WHERE loracomp.check_gains(gained_tasks, gains)
    ), kept AS (
        SELECT
            task_id,
            c.rank AS place,
            c.p,
            g.gain,
            CASE (settings).weighting WHEN 'measured' THEN g.rank ELSE c.rank END AS rank,
            -- A margin below 0 also keeps adapters that are expected to harm: what they are above it is positive.
            CASE (settings).weighting
                WHEN 'measured' THEN g.gain - least((settings).gain_margin, 0) ELSE c.p
            END AS worth,
            -- Cumulated masses meet top_p exactly where examples tie (.5 + .4 = .9), so they are compared with 1e-9 to spare.
            CASE (settings).weighting
                WHEN 'measured' THEN coalesce(
                    g.gain > (settings).gain_margin AND g.rank <= (settings).max_adapters, FALSE
                )
                ELSE coalesce(c.rank <= (settings).max_adapters AND c.mass - c.p < (settings).top_p - 1e-9, FALSE)
            END AS keep
        FROM cumulated AS c
        FULL JOIN gained AS g USING (task_id)
    ), composed AS (
        SELECT
            k.*,
            k.keep AND (
                k.rank = 1 OR k.worth / sum(k.worth) FILTER (WHERE k.keep) OVER () >= (settings).min_share - 1e-9
            ) AS in_nucleus
        FROM kept AS k
    )
    SELECT
        c.task_id,
        coalesce(c.p, 0),
        c.in_nucleus,
        CASE
            WHEN NOT c.in_nucleus THEN 0
            WHEN (settings).weighting = 'uniform' THEN 1.0 / count(*) FILTER (WHERE c.in_nucleus) OVER ()
            ELSE c.worth / sum(c.worth) FILTER (WHERE c.in_nucleus) OVER ()
        END,
        c.gain
    FROM composed AS c
    ORDER BY c.place, c.gain DESC, c.task_id;
END;
COMMENT ON FUNCTION loracomp.task_weights IS
'Tasks by falling probability, from retrieved examples'' tasks and cosine similarities: softmax over the examples, '
'sum by task, nucleus over the tasks, at most max_adapters, none below min_share, weights renormalised over the kept. '
'At least one task is kept; ties go to the most similar example. Weighting measured keeps, in place of the nucleus, the '
'tasks with the highest expected gains (given for gained_tasks) above gain_margin, which may be none, and weighs them by it.';
