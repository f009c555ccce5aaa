-- Computes how a job would have been routed with other settings, from its stored trace alone.
--   rescore_route               a job's tasks and weights with changed settings
--     with_settings             the trace's policy with these settings
--     policy_with               or another policy with these settings
--     check_traced              raises if the trace has not enough for them
--     task_weights

-- Reads nothing. The trace has only its k nearest examples, and the expected gains that its own settings gave.
CREATE FUNCTION loracomp.check_traced(before loracomp.policy, used loracomp.policy) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    missing CONSTANT text := CASE
        WHEN used.k > before.k
            THEN format('the trace has examples for k up to %s, and not for %s', before.k, used.k)
        WHEN used.weighting = 'measured' AND before.weighting <> 'measured' THEN 'the trace has no expected gains'
        WHEN used.weighting = 'measured' AND (
            used.k, used.temperature, used.gain_prior, used.calibration_rows, used.min_similarity, used.choice_normalization,
            used.chat_template
        ) IS DISTINCT FROM (
            before.k, before.temperature, before.gain_prior, before.calibration_rows, before.min_similarity,
            before.choice_normalization, before.chat_template
        )
            THEN 'the trace has the expected gains of its own k, temperature, gain_prior, calibration_rows, min_similarity, '
                'choice_normalization and chat_template'
    END;
BEGIN
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = missing, ERRCODE = 'invalid_parameter_value',
            HINT = 'insert a job of kind route with the same prompt and a policy that has these settings';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_traced IS
'True if a trace of a job that was routed by the policy `before` is enough to weigh its tasks by the policy `used`; otherwise an error.';

-- Changes nothing; reads the stored traces of all jobs with its owner's rights, for analysts and administrators. Tasks that the
-- caller may not know of are shown as labels.
CREATE FUNCTION loracomp.rescore_route(job bigint, settings jsonb DEFAULT '{}', policy text DEFAULT NULL)
RETURNS TABLE (
    task text,
    probability double precision,
    in_nucleus boolean,
    weight double precision,
    expected_gain double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    traced loracomp.prediction;
    before loracomp.policy;
    used loracomp.policy;
    names text[];
    gained text[];
    gains double precision[];
    worths double precision[];
    known text[];
    labels CONSTANT jsonb := (SELECT m.labels FROM loracomp.task_mask AS m);
BEGIN
    SELECT p.* INTO traced FROM loracomp.prediction AS p
    WHERE p.job_id = rescore_route.job AND (
        loracomp.caller_is_admin()
        OR coalesce(pg_has_role(loracomp.caller(), to_regrole('loracomp_analyst'), 'member'), false)
    );
    IF traced.job_id IS NULL THEN
        RAISE EXCEPTION 'job % has no prediction', job
            USING ERRCODE = 'no_data_found', HINT = 'bi.prediction lists the jobs that have ended';
    END IF;
    before := jsonb_populate_record(NULL::loracomp.policy, traced.policy_settings);
    used := CASE
        WHEN rescore_route.policy IS NULL THEN loracomp.with_settings(before, rescore_route.settings)
        ELSE loracomp.policy_with(rescore_route.policy, rescore_route.settings)
    END;
    IF EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = rescore_route.job AND j.weights IS NOT NULL) THEN
        -- The job gave the weights itself: no setting changes them.
        RETURN QUERY
        SELECT coalesce(labels ->> u.task, u.task), u.probability, u.weight > 0, u.weight, NULL::double precision
        FROM unnest(traced.tasks, traced.probabilities, traced.weights) AS u (task, probability, weight);
        RETURN;
    END IF;
    PERFORM loracomp.check_traced(before, used);
    names := traced.example_tasks[:used.k];
    SELECT
        coalesce(array_agg(u.task), '{}'), coalesce(array_agg(u.gain), '{}'),
        -- Below min_similarity all weights are 0.
        array_agg(coalesce(u.weight / nullif((SELECT max(t.w) FROM unnest(traced.weights) AS t (w)), 0), 1))
    INTO gained, gains, worths
    FROM unnest(traced.tasks, traced.expected_gains, traced.weights) AS u (task, gain, weight)
    WHERE used.weighting = 'measured' AND u.gain IS NOT NULL;
    -- task_weights takes task numbers, so each name is replaced by its first position in the array.
    known := names || gained;
    RETURN QUERY
    SELECT
        coalesce(labels ->> known[w.task_id], known[w.task_id]), w.probability, w.in_nucleus,
        CASE WHEN traced.similarities[1] < used.min_similarity THEN 0 ELSE w.weight END, w.expected_gain
    FROM loracomp.task_weights(
        ARRAY(SELECT array_position(known, n.name) FROM unnest(names) AS n (name)), traced.similarities[:used.k], used,
        ARRAY(SELECT array_position(known, g.name) FROM unnest(gained) AS g (name)), gains,
        CASE WHEN traced.calibration_examples IS NOT NULL THEN worths END
    ) AS w;
END
$$;
COMMENT ON FUNCTION loracomp.rescore_route IS
'Tasks and weights that retrieval would have given a job with other settings, such as {"top_p": 0.9}, or with another policy; '
'other settings are those of the trace. It uses the trace''s examples and expected gains, and refuses settings for which these are '
'not enough: a larger k, or with weighting measured another k, temperature, gain_prior, calibration_rows or min_similarity, '
'or a policy with another choice_normalization or chat_template. The router does not matter; weights that the job itself gave '
'stay as they are.';
