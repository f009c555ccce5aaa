-- How an evaluation starts: rows of a split become jobs under each policy.
--   start_evaluation
--     check_evaluation          raises if it can't be started with these arguments
--       unknown_tasks
--       evaluated_examples
--     evaluated_examples        rows that can become jobs, in a random order given by the seed
--     tasks_that_have_seen      tasks to exclude, because their adapters were trained on these rows

-- Inserts a job for each drawn row and policy, as the caller. Existing jobs are kept, so that calling it again adds the missing
-- ones: more rows, tasks or policies. The other settings of an evaluation are fixed by its first call.
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
BEGIN
    INSERT INTO loracomp.evaluation AS e (name, description, split, kind, base_model, exclude_own, seed, created_by)
    VALUES (
        start_evaluation.name, start_evaluation.description, start_evaluation.split, start_evaluation.kind, model,
        start_evaluation.exclude_own, start_evaluation.seed, loracomp.caller()
    )
    ON CONFLICT DO NOTHING;
    SELECT e.* INTO found_one FROM loracomp.evaluation AS e WHERE e.name = start_evaluation.name;
    IF (found_one.split, found_one.kind, found_one.base_model, found_one.exclude_own, found_one.seed)
        IS DISTINCT FROM (start_evaluation.split, start_evaluation.kind, model, start_evaluation.exclude_own,
            start_evaluation.seed)
    THEN
        RAISE EXCEPTION 'evaluation % was started with other settings: split %, kind %, base_model %, exclude_own %, seed %',
            found_one.name, coalesce(found_one.split, 'none'), found_one.kind, coalesce(found_one.base_model, 'none'),
            found_one.exclude_own, found_one.seed
            USING ERRCODE = 'invalid_parameter_value', HINT = 'give the same value to add jobs, or choose another name for the evaluation';
    END IF;
    PERFORM loracomp.check_evaluation(tasks, policies, split, rows_a_task);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT
            t.name AS task,
            p.name AS policy,
            x.*,
            -- Policies with router own_task are not affected: without its own task such a policy would be the base model.
            CASE WHEN start_evaluation.exclude_own AND p.router <> 'own_task' THEN seen.task_names ELSE '{}' END AS excluded,
            array_position(tasks, t.name) AS task_place,
            array_position(policies, p.name) AS policy_place
        FROM loracomp.task AS t
        CROSS JOIN LATERAL loracomp.tasks_that_have_seen(t.name, model) AS seen (task_names)
        CROSS JOIN LATERAL loracomp.evaluated_examples(t.name, start_evaluation.split, start_evaluation.seed) AS x
        CROSS JOIN loracomp.policy AS p
        WHERE t.name = ANY (tasks) AND p.name = ANY (policies)
            AND x.place <= coalesce(start_evaluation.rows_a_task, x.place)
    ), missing AS (
        INSERT INTO loracomp.job AS j (
            kind, prompt, choices, policy, base_model, exclude_tasks, task, expected, evaluation, example_id, submitted_by
        )
        SELECT
            start_evaluation.kind, a.prompt, a.choices, a.policy, model, a.excluded, a.task, a.answer,
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
    SELECT
        a.task,
        a.policy,
        count(*),
        (SELECT count(*) FROM missing AS m WHERE m.task = a.task AND m.policy = a.policy)
    FROM asked AS a
    GROUP BY a.task, a.policy, a.task_place, a.policy_place
    ORDER BY a.task_place, a.policy_place;
END
$$;
COMMENT ON FUNCTION loracomp.start_evaluation IS
'Inserts jobs from the rows of tasks'' split under each policy, the same rows for all policies; returns for each task and policy '
'how many jobs there are and how many were added. rows_a_task null: all rows. exclude_own: a job may not use its own task, nor '
'tasks whose active adapter was trained on its row (except with router own_task). kind route: only routing weights. base_model '
'null: the default. Workers take these jobs only if no other job is due.';

-- Changes nothing; raises for the first argument with which the evaluation can't be started.
CREATE FUNCTION loracomp.check_evaluation(tasks text[], policies text[], split text, rows_a_task integer)
RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    unknown_tasks CONSTANT text := loracomp.unknown_tasks(tasks);
    unknown_policies CONSTANT text := (
        SELECT string_agg(DISTINCT coalesce(u.name, 'null'), ', ') FROM unnest(policies) AS u (name)
        WHERE NOT EXISTS (SELECT FROM loracomp.policy AS p WHERE p.name = u.name)
    );
    empty_tasks CONSTANT text := (
        SELECT string_agg(DISTINCT u.name, ', ') FROM unnest(tasks) AS u (name)
        WHERE NOT EXISTS (SELECT FROM loracomp.evaluated_examples(u.name, check_evaluation.split))
    );
BEGIN
    IF coalesce(cardinality(tasks), 0) = 0 OR coalesce(cardinality(policies), 0) = 0 THEN
        RAISE EXCEPTION 'tasks and policies must name at least one each' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF rows_a_task < 1 THEN
        RAISE EXCEPTION 'rows_a_task must be 1 or more, not %', rows_a_task
            USING ERRCODE = 'invalid_parameter_value', HINT = 'leave it out for all rows';
    END IF;
    IF unknown_tasks IS NOT NULL THEN
        RAISE EXCEPTION 'tasks names tasks that do not exist: %', unknown_tasks
            USING ERRCODE = 'no_data_found', HINT = 'loracomp task list shows the existing ones';
    END IF;
    IF unknown_policies IS NOT NULL THEN
        RAISE EXCEPTION 'policies names policies that do not exist: %', unknown_policies
            USING ERRCODE = 'no_data_found', HINT = 'loracomp policy list shows the existing ones';
    END IF;
    IF empty_tasks IS NOT NULL THEN
        RAISE EXCEPTION 'no % rows with text and answer of: %', split, empty_tasks
            USING ERRCODE = 'no_data_found',
                HINT = format('loracomp task import TASK --split %s brings them, or loracomp evaluate --data', split);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_evaluation IS 'True, or an error that says why the evaluation can''t be started.';

-- Reads the rows of a split that can become jobs, in a random order given by the seed, so that the first n rows are always among
-- the first n + 1. Embedded rows are left out, because a job made from one would retrieve itself.
CREATE FUNCTION loracomp.evaluated_examples(task text, split text, seed integer DEFAULT 0)
RETURNS TABLE (example_id bigint, prompt text, choices text[], answer text, place bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        e.id,
        e.prompt,
        e.choices,
        e.answer,
        row_number() OVER (ORDER BY sha256(e.content_hash || int4send(evaluated_examples.seed)), e.id)
    FROM loracomp.task AS t
    JOIN loracomp.example AS e ON e.task_id = t.id
    WHERE t.name = evaluated_examples.task AND e.split = evaluated_examples.split
        AND e.prompt IS NOT NULL AND e.answer IS NOT NULL
        AND NOT EXISTS (SELECT FROM loracomp.example_embedding AS v WHERE v.example_id = e.id);
END;
COMMENT ON FUNCTION loracomp.evaluated_examples IS
'Rows of a task''s split from which an evaluation can make jobs, with their positions in a random order given by the seed.';

-- Reads the training records of active adapters. An adapter without a record is assumed to be trained on its own task only.
CREATE FUNCTION loracomp.tasks_that_have_seen(task text, base_model text) RETURNS text[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT array_agg(t.name ORDER BY t.name)
    FROM loracomp.task AS t
    WHERE t.name = tasks_that_have_seen.task OR EXISTS (
        SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id
        WHERE a.task_id = t.id AND a.status = 'active' AND b.name = tasks_that_have_seen.base_model
            AND a.training -> 'tasks_seen' ? tasks_that_have_seen.task
    );
END;
COMMENT ON FUNCTION loracomp.tasks_that_have_seen IS
'The task, and other tasks whose active adapter was trained on its rows: the adapter''s training record has the task in '
'tasks_seen, for example because its training started from the task''s adapter.';
