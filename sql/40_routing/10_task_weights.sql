-- Turns the similarities of retrieved examples into weights of their tasks, as a policy's settings say: steps 2 to 5 of the paper. The
-- settings are passed as one row of loracomp.policy. None of these functions reads a table.
--   task_weights                probabilities and weights of tasks, by one of the last four functions: labelled_weights if the choices are
--                               calibrated, and otherwise the one that the policy's weighting names
--     uses_gains                whether a weighting uses expected gains; routing asks it before it reads measurements
--     task_probabilities        softmax over the examples, summed by task
--       check_similarities
--       relative_share          an example's term of the softmax, divided by the largest term
--     similarity_weights        weighting 'similarity'
--       check_probabilities
--     uniform_weights           weighting 'uniform'
--       similarity_weights
--     measured_weights          weighting 'measured'
--       check_gains
--     labelled_weights          weighting 'measured', if labelled examples of the task show what each adapter is worth

CREATE FUNCTION loracomp.check_similarities(tasks integer[], similarities double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = loracomp, pg_temp
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
'Returns true if the arrays have a task and a cosine similarity for each retrieved example; otherwise raises an error.';

CREATE FUNCTION loracomp.check_gains(tasks integer[], gains double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = loracomp, pg_temp
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
'Returns true if the arrays have a task and a finite number for each measured task; otherwise raises an error.';

-- The exponent is at least -300: below -745 exp raises an underflow error, and expected_gains multiplies the result by gains, which may
-- be as small as 1e-45. A policy's temperature is at least 0.0001; a lower one counts as that, so that nobody divides by 0.
CREATE FUNCTION loracomp.relative_share(
    similarity double precision, highest double precision, temperature double precision
) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN exp(greatest((similarity - highest) / greatest(temperature, 0.0001), -300));
COMMENT ON FUNCTION loracomp.relative_share IS
'An example''s term of the softmax over similarities, divided by the term of the most similar example.';

CREATE FUNCTION loracomp.task_probabilities(
    tasks integer[], similarities double precision[], temperature double precision
) RETURNS TABLE (task_ids integer[], probabilities double precision[])
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 1
BEGIN ATOMIC
    WITH example AS (
        SELECT
            u.task_id,
            row_number() OVER (ORDER BY u.similarity DESC, u.ordinal) AS rank,
            loracomp.relative_share(u.similarity, max(u.similarity) OVER (), temperature) AS e
        FROM unnest(tasks, similarities) WITH ORDINALITY AS u (task_id, similarity, ordinal)
        WHERE loracomp.check_similarities(tasks, similarities)
    ), mass AS (
        SELECT x.task_id, min(x.rank) AS best, sum(x.e) / sum(sum(x.e)) OVER () AS p
        FROM example AS x
        GROUP BY x.task_id
    ), ranked AS (
        -- Rounded, because otherwise rounding errors of the sums would order tasks that are equally probable.
        SELECT m.task_id, m.p, row_number() OVER (ORDER BY round(m.p::numeric, 12) DESC, m.best) AS rank
        FROM mass AS m
    )
    SELECT coalesce(array_agg(r.task_id ORDER BY r.rank), '{}'), coalesce(array_agg(r.p ORDER BY r.rank), '{}')
    FROM ranked AS r;
END;
COMMENT ON FUNCTION loracomp.task_probabilities IS
'The tasks of retrieved examples with their probabilities, most probable first. A task''s probability is the sum of the softmax over '
'the examples'' similarities. Among tasks with equal probabilities, the one with the most similar example comes first.';

CREATE FUNCTION loracomp.check_probabilities(probabilities double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- The limit is a little above 1, because rounding may make a sum of shares a little larger than 1.
    IF (0 <= ALL (probabilities) AND 1.000001 > ALL (probabilities)) IS NOT TRUE THEN
        RAISE EXCEPTION 'probabilities must be from 0 to 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_probabilities IS 'Returns true if each number is a probability; otherwise raises an error.';

CREATE FUNCTION loracomp.similarity_weights(probabilities double precision[], settings loracomp.policy)
RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH cumulated AS (
        SELECT u.p, u.rank, sum(u.p) OVER (ORDER BY u.rank) AS mass
        FROM unnest(probabilities) WITH ORDINALITY AS u (p, rank)
        WHERE loracomp.check_probabilities(probabilities)
    ), nucleus AS (
        -- The tolerance of 1e-9 is for probabilities whose sum is exactly routing_top_p, such as .5 + .4 for .9.
        SELECT
            c.p, c.rank,
            c.rank <= (settings).max_adapters AND c.mass - c.p < (settings).routing_top_p - 1e-9 AS holds
        FROM cumulated AS c
    ), kept AS (
        SELECT
            n.p, n.rank,
            n.holds AND (
                n.rank = 1 OR n.p / sum(n.p) FILTER (WHERE n.holds) OVER () >= (settings).min_share - 1e-9
            ) AS is_kept
        FROM nucleus AS n
    )
    SELECT array_agg(w.weight ORDER BY w.rank)
    FROM (
        SELECT k.rank, CASE WHEN k.is_kept THEN k.p / sum(k.p) FILTER (WHERE k.is_kept) OVER () ELSE 0 END AS weight
        FROM kept AS k
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.similarity_weights IS
'Weights of tasks by their probabilities, which must be in descending order. The function keeps the nucleus: the first tasks, until '
'their probabilities add up to routing_top_p, but at most max_adapters of them. It drops tasks whose share is below min_share, but never the first '
'task. The weights of kept tasks are their probabilities, scaled to a sum of 1; the weights of other tasks are 0.';

CREATE FUNCTION loracomp.uniform_weights(probabilities double precision[], settings loracomp.policy)
RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(w.weight ORDER BY w.rank)
    FROM (
        SELECT
            u.rank,
            CASE WHEN u.weight > 0 THEN 1.0 / count(*) FILTER (WHERE u.weight > 0) OVER () ELSE 0 END AS weight
        FROM unnest(loracomp.similarity_weights(probabilities, settings)) WITH ORDINALITY AS u (weight, rank)
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.uniform_weights IS 'Equal weights for the tasks that similarity_weights keeps; the weights of other tasks are 0.';

CREATE FUNCTION loracomp.measured_weights(gains double precision[], settings loracomp.policy) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH ranked AS (
        SELECT
            u.ordinal, u.gain, row_number() OVER (ORDER BY u.gain DESC, u.ordinal) AS rank,
            -- The worth of a gain above the margin is positive even if the gain is negative, which a negative margin allows.
            u.gain - least((settings).gain_margin, 0) AS worth
        FROM unnest(gains) WITH ORDINALITY AS u (gain, ordinal)
    ), expected AS (
        SELECT r.*, r.gain > (settings).gain_margin AND r.rank <= (settings).max_adapters AS helps FROM ranked AS r
    ), kept AS (
        SELECT
            e.ordinal, e.worth,
            e.helps AND (
                e.rank = 1 OR e.worth / sum(e.worth) FILTER (WHERE e.helps) OVER () >= (settings).min_share - 1e-9
            ) AS is_kept
        FROM expected AS e
    )
    SELECT array_agg(w.weight ORDER BY w.ordinal)
    FROM (
        SELECT
            k.ordinal,
            CASE WHEN k.is_kept THEN k.worth / sum(k.worth) FILTER (WHERE k.is_kept) OVER () ELSE 0 END AS weight
        FROM kept AS k
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.measured_weights IS
'Weights of adapters by their expected gains. The function keeps the adapters with the highest gains above gain_margin, at most '
'max_adapters of them. It drops adapters whose share is below min_share, but never the first adapter. The weights of kept adapters are their '
'gains (minus the margin, if the margin is negative), scaled to a sum of 1; the weights of other adapters are 0.';

-- It takes no settings: max_adapters, gain_margin and min_share do not apply. So up to 64 adapters are composed, because expected_gains
-- returns no more.
CREATE FUNCTION loracomp.labelled_weights(worths double precision[]) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(w.weight ORDER BY w.ordinal)
    FROM (
        SELECT
            k.ordinal,
            CASE WHEN k.is_kept THEN k.worth / sum(k.worth) FILTER (WHERE k.is_kept) OVER () ELSE 0 END AS weight
        FROM (
            SELECT u.worth, u.ordinal, u.worth >= 0.01 - 1e-9 AS is_kept
            FROM unnest(worths) WITH ORDINALITY AS u (worth, ordinal)
        ) AS k
    ) AS w;
END;
COMMENT ON FUNCTION loracomp.labelled_weights IS
'Weights of adapters by what they are worth on labelled examples of the task, where the best adapter is worth 1. The weights of '
'adapters that are worth at least 0.01 are their worths, scaled to a sum of 1; the weights of other adapters are 0.';

CREATE FUNCTION loracomp.uses_gains(weighting text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN weighting = 'measured';
COMMENT ON FUNCTION loracomp.uses_gains IS
'Whether a policy''s weighting weighs adapters by their expected gains on measured examples.';

CREATE FUNCTION loracomp.task_weights(
    tasks integer[],
    similarities double precision[],
    settings loracomp.policy,
    gained_tasks integer[] DEFAULT '{}',
    gains double precision[] DEFAULT '{}',
    worths double precision[] DEFAULT NULL
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
    SELECT
        task_id,
        coalesce(s.probability, 0),
        coalesce(s.weight, g.weight, 0) > 0,
        coalesce(s.weight, g.weight, 0),
        g.gain
    FROM (
        SELECT u.*
        FROM loracomp.task_probabilities(tasks, similarities, (settings).routing_temperature) AS p
        CROSS JOIN LATERAL unnest(
            p.task_ids, p.probabilities,
            CASE (settings).weighting
                WHEN 'similarity' THEN loracomp.similarity_weights(p.probabilities, settings)
                WHEN 'uniform' THEN loracomp.uniform_weights(p.probabilities, settings)
            END
        ) WITH ORDINALITY AS u (task_id, probability, weight, rank)
    ) AS s
    FULL JOIN (
        SELECT u.*
        FROM unnest(
            gained_tasks, gains,
            CASE
                WHEN NOT loracomp.uses_gains((settings).weighting) THEN NULL
                WHEN worths IS NULL THEN loracomp.measured_weights(gains, settings)
                ELSE loracomp.labelled_weights(worths)
            END
        ) AS u (task_id, gain, weight)
        WHERE loracomp.check_gains(gained_tasks, gains)
    ) AS g USING (task_id)
    ORDER BY s.rank, g.gain DESC, task_id;
END;
COMMENT ON FUNCTION loracomp.task_weights IS
'Probabilities and weights of tasks, from the tasks and cosine similarities of retrieved examples. The policy''s weighting chooses the '
'function that weighs the tasks: similarity_weights, uniform_weights or measured_weights, which takes the expected gains of '
'gained_tasks. With weighting measured and the worths of gained_tasks (1 for the best), labelled_weights is called instead. '
'in_nucleus says which tasks have a weight.';
