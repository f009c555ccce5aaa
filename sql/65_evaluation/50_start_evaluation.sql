-- How an evaluation starts: rows of a split become jobs under each policy.
--   start_evaluation
--     draw_examples             rows that can become jobs: 42_measurement/10_what_to_measure.sql
--     tasks_that_saw            the task, and those whose adapters were trained on its rows

-- Inserts a job for each drawn row and policy, as the caller. Existing jobs are kept, so that calling it again adds the missing
-- ones: more rows, tasks or policies. The other settings of an evaluation are fixed by its first call. A job's triggers refuse
-- unknown policies.
CREATE FUNCTION loracomp.start_evaluation(
    name text,
    tasks text[],
    policies text[],
    split text DEFAULT 'validation',
    rows_a_task integer DEFAULT NULL,
    exclude_own boolean DEFAULT FALSE,
    kind text DEFAULT 'predict',
    base_model text DEFAULT NULL,
    seed integer DEFAULT 0,
    description text DEFAULT ''
) RETURNS TABLE (task text, policy text, jobs bigint, added bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    model CONSTANT text := (loracomp.find_base_model(start_evaluation.base_model)).name;
    found_one loracomp.evaluation;
    empty_tasks text;
BEGIN
    IF coalesce(cardinality(tasks), 0) = 0 OR coalesce(cardinality(policies), 0) = 0 THEN
        RAISE EXCEPTION 'tasks and policies must name at least one each' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM loracomp.check_range('rows_a_task', coalesce(rows_a_task, 1), 1, 1e9);
    INSERT INTO loracomp.evaluation AS e (name, description, split, kind, base_model, exclude_own, seed, created_by)
    VALUES (
        start_evaluation.name, start_evaluation.description, start_evaluation.split, start_evaluation.kind, model,
        start_evaluation.exclude_own, start_evaluation.seed, loracomp.caller()
    )
    ON CONFLICT DO NOTHING;
    SELECT e.* INTO found_one FROM loracomp.evaluation AS e WHERE e.name = start_evaluation.name;
    IF (found_one.split, found_one.kind, found_one.base_model, found_one.exclude_own, found_one.seed)
        IS DISTINCT FROM (start_evaluation.split, start_evaluation.kind, model, start_evaluation.exclude_own, start_evaluation.seed)
    THEN
        RAISE EXCEPTION 'evaluation % was started with other settings: split %, kind %, base_model %, exclude_own %, seed %',
            found_one.name, found_one.split, found_one.kind, found_one.base_model, found_one.exclude_own, found_one.seed
            USING ERRCODE = 'invalid_parameter_value', HINT = 'give the same values to add jobs, or choose another name';
    END IF;
    SELECT string_agg(DISTINCT u.name, ', ') INTO empty_tasks FROM unnest(tasks) AS u (name)
    WHERE NOT EXISTS (
        SELECT FROM loracomp.task AS t CROSS JOIN LATERAL loracomp.draw_examples(t.id, start_evaluation.split, 0, FALSE)
        WHERE t.name = u.name
    );
    IF empty_tasks IS NOT NULL THEN
        RAISE EXCEPTION 'no % rows with text and label of: %', split, empty_tasks
            USING ERRCODE = 'no_data_found', HINT = format(
                'loracomp task import-catalogue TASK --split %s brings them, or loracomp evaluate --data; loracomp task list '
                'shows tasks', split
            );
    END IF;
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT
            t.name AS task, p.name AS policy, e.id AS example_id, e.prompt, e.choices, e.label, x.place,
            -- Policies with router own_task are not affected: without its own task such a policy would be the base model.
            CASE WHEN start_evaluation.exclude_own AND o.router <> 'own_task' THEN seen.names ELSE '{}' END AS excluded,
            t.place AS task_place, p.place AS policy_place
        FROM unnest(tasks) WITH ORDINALITY AS t (name, place)
        JOIN loracomp.task AS k ON k.name = t.name
        CROSS JOIN unnest(policies) WITH ORDINALITY AS p (name, place)
        LEFT JOIN loracomp.policy AS o ON o.name = p.name
        CROSS JOIN LATERAL (SELECT loracomp.tasks_that_saw(t.name, model) AS names) AS seen
        -- Embedded rows are left out, because a job made from one would retrieve itself.
        CROSS JOIN LATERAL loracomp.draw_examples(k.id, start_evaluation.split, start_evaluation.seed, FALSE) AS x
        JOIN loracomp.example AS e ON e.id = x.example_id
        WHERE x.place <= coalesce(start_evaluation.rows_a_task, x.place)
    ), missing AS (
        INSERT INTO loracomp.job AS j (
            kind, prompt, choices, policy, base_model, exclude_tasks, task, expected, evaluation, example_id, submitted_by
        )
        SELECT
            start_evaluation.kind, a.prompt, a.choices, a.policy, model, a.excluded, a.task, a.label,
            start_evaluation.name, a.example_id, loracomp.caller()
        FROM asked AS a
        WHERE NOT EXISTS (
            SELECT FROM loracomp.job AS j
            WHERE j.evaluation = start_evaluation.name AND j.example_id = a.example_id AND j.policy = a.policy
        )
        ORDER BY a.task_place, a.policy_place, a.place
        -- Another call at the same time may have inserted it first.
        ON CONFLICT (evaluation, example_id, policy) WHERE example_id IS NOT NULL DO NOTHING
        RETURNING j.task, j.policy
    )
    SELECT a.task, a.policy, count(*), (SELECT count(*) FROM missing AS m WHERE m.task = a.task AND m.policy = a.policy)
    FROM asked AS a
    GROUP BY a.task, a.policy, a.task_place, a.policy_place
    ORDER BY a.task_place, a.policy_place;
END
$$;
COMMENT ON FUNCTION loracomp.start_evaluation IS
'Inserts jobs from the rows of tasks'' split under each policy, the same rows for all policies; returns how many there are and were added. '
'exclude_own: a job may use neither its own task nor adapters that learnt from it. kind route: only routing weights.';

-- Reads the training records of active adapters.
CREATE FUNCTION loracomp.tasks_that_saw(task text, base_model text) RETURNS text[]
LANGUAGE sql STABLE
RETURN (
    SELECT array_agg(o.name ORDER BY o.name) FROM loracomp.task AS o
    WHERE o.name = tasks_that_saw.task OR EXISTS (
        SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id
        WHERE a.task_id = o.id AND a.status = 'active' AND b.name = tasks_that_saw.base_model
            AND a.training -> 'tasks_seen' ? tasks_that_saw.task
    )
);
COMMENT ON FUNCTION loracomp.tasks_that_saw IS 'The task, and those whose active adapters were trained on its rows.';
