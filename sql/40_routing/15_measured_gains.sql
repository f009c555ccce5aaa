-- What measured examples say about adapters, for weighting 'measured'. None of these functions changes a table.
--   expected_gains              expected gain of each adapter on a job, by the measurements of the retrieved examples
--     relative_share            10_task_weights.sql
--     in_chat_template          whether a prompt is put into the base model's chat template
--   calibration_examples        labelled examples on which biases of a job's choices are fitted
--   adapter_worths              what each adapter is worth on these examples

-- Reads no table.
CREATE FUNCTION loracomp.in_chat_template(
    setting text, has_template boolean, choices text[], chosen boolean DEFAULT NULL, system_text text DEFAULT NULL
)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT coalesce(
        chosen,
        system_text IS NOT NULL
        OR (has_template AND (setting = 'always' OR (setting = 'generation' AND choices IS NULL)))
    );
END;
COMMENT ON FUNCTION loracomp.in_chat_template IS
'Whether a job''s prompt is put into the base model''s chat template. The job''s own choice comes first; without one, a job with a '
'system text uses the template; and for other jobs the policy''s setting decides, if the model has a template.';

-- Reads measurements of the examples. It doesn't filter by base model, because each adapter belongs to one base model. It leaves out
-- gains that were measured with another normalisation or chat template, because the job's scores are not comparable with them.
-- base_is_right is null for examples without choices.
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
            loracomp.relative_share(u.similarity, max(u.similarity) OVER (), (settings).routing_temperature) AS e
        FROM unnest(example_ids, similarities) AS u (example_id, similarity)
    ), share AS (
        SELECT x.example_id, x.e / sum(x.e) OVER () AS e FROM example AS x
    )
    SELECT a.task_id, g.gain
    FROM (
        SELECT g.adapter_id, sum(s.e * g.gain) / (sum(s.e) + (settings).gain_prior) AS gain
        FROM share AS s
        JOIN loracomp.measurement AS m
            ON m.example_id = s.example_id AND m.choice_normalization = (settings).choice_normalization
        JOIN loracomp.base_model AS b
            ON b.id = m.base_model_id AND m.chat_template = loracomp.in_chat_template(
                (settings).chat_template, b.has_chat_template,
                CASE WHEN m.base_is_right IS NOT NULL THEN '{}'::text[] END
            )
        CROSS JOIN LATERAL unnest(m.adapter_ids, m.gains) AS g (adapter_id, gain)
        GROUP BY g.adapter_id
    ) AS g
    -- width_bucket finds an adapter by bisection: there may be thousands, of which few are measured on these examples.
    CROSS JOIN LATERAL (SELECT width_bucket(g.adapter_id, usable_adapters) AS ordinal) AS p
    CROSS JOIN LATERAL (SELECT adapter_tasks[p.ordinal] AS task_id) AS a
    WHERE usable_adapters[p.ordinal] = g.adapter_id
    ORDER BY g.gain DESC, a.task_id
    LIMIT 64;
END;
COMMENT ON FUNCTION loracomp.expected_gains IS
'Expected gain of each of these adapters, which must be in order of their ids: the mean of its gains on the retrieved examples that '
'are measured with the policy''s choice_normalization and chat_template, weighted by the softmax over similarities and shrunk towards '
'0 by gain_prior. There is a row for each task with a measured adapter, but only for the 64 highest gains, because a policy composes '
'at most 64 adapters.';

-- Reads examples and their measurements: at most the task's first 1,000 measured examples, so that its time is bounded. Four examples
-- are enough, because biases fitted on four are worth more than weights by gains on sixteen (docs/routing.md). The result is the same for
-- each job with these choices, so that a worker can keep the biases. Unless a job has a labelled_task, callers pass the task of the nearest
-- example, because the most probable task is seldom one with few examples.
CREATE FUNCTION loracomp.calibration_examples(
    choices text[],
    task_id integer,
    similarity double precision,
    usable_adapters integer[],
    settings loracomp.policy
) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(x.id ORDER BY x.id)
    FROM (
        SELECT e.id
        FROM (
            SELECT m.example_id FROM loracomp.measurement AS m
            WHERE m.task_id = calibration_examples.task_id AND m.base_model_id = (
                SELECT a.base_model_id FROM loracomp.adapter AS a WHERE a.id = usable_adapters[1]
            )
            ORDER BY m.example_id
            LIMIT 1000
        ) AS measured
        JOIN loracomp.example AS e ON e.id = measured.example_id AND e.split = 'train'
            AND e.prompt IS NOT NULL AND e.label IS NOT NULL
            AND e.choices @> calibration_examples.choices AND e.choices <@ calibration_examples.choices
        ORDER BY e.content_hash
        LIMIT (settings).calibration_rows
    ) AS x
    WHERE (settings).calibration_rows > 0 AND similarity >= (settings).min_similarity
    HAVING count(*) >= 4;
END;
COMMENT ON FUNCTION loracomp.calibration_examples IS
'Labelled examples on which biases of a job''s choices are fitted: at most calibration_rows of the task''s first 1,000 measured train '
'examples, if they have a text and the same choices. Null if there are fewer than four, or if the similarity is below '
'min_similarity.';

-- It takes the square root of the likelihood, because with the likelihood itself a few rows would decide too much (docs/decisions.md).
CREATE FUNCTION loracomp.adapter_worths(
    labelled_task integer, choices text[], tasks integer[], usable_adapters integer[], adapter_tasks integer[]
) RETURNS double precision[]
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(coalesce(loracomp.relative_share(w.log_likelihood, w.highest, 2), 0) ORDER BY w.ordinal)
    FROM (
        SELECT u.ordinal, l.log_likelihood, max(l.log_likelihood) OVER () AS highest
        FROM unnest(tasks) WITH ORDINALITY AS u (task_id, ordinal)
        LEFT JOIN (
            SELECT adapter_tasks[array_position(usable_adapters, x.adapter_id)] AS task_id, x.log_likelihood
            FROM loracomp.task_evidence AS v
            CROSS JOIN LATERAL unnest(v.adapter_ids, v.log_likelihoods) AS x (adapter_id, log_likelihood)
            WHERE v.task_id = labelled_task
                AND v.base_model_id = (
                    SELECT a.base_model_id FROM loracomp.adapter AS a WHERE a.id = usable_adapters[1]
                )
                AND v.choices @> adapter_worths.choices AND v.choices <@ adapter_worths.choices
        ) AS l ON l.task_id = u.task_id
    ) AS w
    HAVING 2 * count(w.log_likelihood) > count(*);
END;
COMMENT ON FUNCTION loracomp.adapter_worths IS
'For each of these tasks, what its adapter is worth on the labelled examples of labelled_task with these choices: the square root of '
'the examples'' likelihood under the adapter, divided by the highest one; 0 if the likelihood is not known. Null unless it is known '
'for more than half of the adapters.';
