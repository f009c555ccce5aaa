-- What routing's settings are, which values they may have, and what they make of retrieved examples. Live routing and the
-- re-scoring of stored traces share it; a setting passes through them inside its policy. Nothing here changes a table.
--   task_weights                examples' tasks and similarities to tasks, probabilities and weights
--     check_similarities
--     check_routing_settings    the range of each setting
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
        WHEN (settings.weighting IN ('similarity', 'uniform')) IS NOT TRUE
            THEN format('weighting must be similarity or uniform, not %s', settings.weighting)
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
    known CONSTANT text[] := '{k,temperature,top_p,max_adapters,min_share,weighting,min_similarity}';
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

CREATE FUNCTION loracomp.task_weights(tasks integer[], similarities double precision[], settings loracomp.policy)
RETURNS TABLE (task_id integer, probability double precision, in_nucleus boolean, weight double precision)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 5
BEGIN ATOMIC
    WITH example AS (
        -- exp raises an underflow below -745, so the exponent is clamped.
        SELECT
            u.task_id,
            row_number() OVER (ORDER BY u.similarity DESC, u.place) AS rank,
            exp(greatest((u.similarity - max(u.similarity) OVER ()) / (settings).temperature, -700)) AS e
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
    ), kept AS (
        -- Cumulated masses meet top_p exactly where examples tie (.5 + .4 = .9), so they are compared with 1e-9 to spare.
        SELECT
            c.task_id,
            c.p,
            c.rank,
            c.rank <= (settings).max_adapters AND c.mass - c.p < (settings).top_p - 1e-9 AS keep
        FROM cumulated AS c
    ), composed AS (
        SELECT
            k.task_id,
            k.p,
            k.rank,
            k.keep AND (
                k.rank = 1 OR k.p / sum(k.p) FILTER (WHERE k.keep) OVER () >= (settings).min_share - 1e-9
            ) AS keep
        FROM kept AS k
    )
    SELECT
        c.task_id,
        c.p,
        c.keep,
        CASE
            WHEN NOT c.keep THEN 0
            WHEN (settings).weighting = 'uniform' THEN 1.0 / count(*) FILTER (WHERE c.keep) OVER ()
            ELSE c.p / sum(c.p) FILTER (WHERE c.keep) OVER ()
        END
    FROM composed AS c
    ORDER BY c.rank;
END;
COMMENT ON FUNCTION loracomp.task_weights IS
'Tasks by falling probability, from retrieved examples'' tasks and cosine similarities: softmax over the examples, '
'sum by task, nucleus over the tasks, at most max_adapters, none below min_share, weights renormalised over the kept. '
'At least one task is kept; ties go to the most similar example.';
