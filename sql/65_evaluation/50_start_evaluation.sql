-- How an evaluation starts: rows of a split become jobs under each policy.
--   start_evaluation
--     check_evaluation          raises where it could not be started
--       unknown_tasks
--       evaluated_examples
--     evaluated_examples        rows that can be asked, in the order in which a seed draws them
--     tasks_that_have_seen      tasks to exclude, for their adapters have learnt from these rows

-- Inserts a job for each row drawn and policy, as the caller; those that are there already stay as they are, so that calling
-- it again adds what is missing: more rows, tasks or policies. What an evaluation asks, and how, is decided by its first call.
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
            USING ERRCODE = 'invalid_parameter_value', HINT = 'give the same to add to it, or take another name';
    END IF;
    PERFORM loracomp.check_evaluation(tasks, policies, split, rows_a_task);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT
            t.name AS task,
            p.name AS policy,
            x.*,
            -- An own task's adapter without its own task would be the base model under a false name.
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
        -- Another call at the same time may have been first.
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
'Asks rows of the tasks'' split under each of the policies, the same rows for all: a row a task and policy, with the jobs '
'that this call asks for and how many of them were added. rows_a_task null is all of them; exclude_own keeps out of each row''s '
'mix its own task and those whose active adapter has learnt from it (but for policies whose router is own_task); kind route '
'asks for weights alone; base_model null is the default one. The jobs wait until nothing else is due.';

-- Changes nothing; raises for the first thing that an evaluation could not be started with.
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
            USING ERRCODE = 'no_data_found', HINT = 'loracomp task list names those that there are';
    END IF;
    IF unknown_policies IS NOT NULL THEN
        RAISE EXCEPTION 'policies names policies that do not exist: %', unknown_policies
            USING ERRCODE = 'no_data_found', HINT = 'loracomp policy list names those that there are';
    END IF;
    IF empty_tasks IS NOT NULL THEN
        RAISE EXCEPTION 'no % rows with text and answer of: %', split, empty_tasks
            USING ERRCODE = 'no_data_found',
                HINT = format('loracomp task import TASK --split %s brings them, or loracomp evaluate --data', split);
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_evaluation IS 'True, or an error that says why such an evaluation can''t be started.';

-- Reads the rows of a split that can be asked, in the order in which they are drawn: fewer are always among more. A row
-- that is in the index would retrieve itself, so that it is none: train rows, but for those that were never embedded.
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
'Rows of a task''s split that an evaluation can ask, with their places in the order that a seed draws them in.';

-- Reads the training records of active adapters. An adapter without one has seen its own task, as far as is known.
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
'The task, and those whose active adapter has learnt from its rows: its training record names it in tasks_seen, as that of '
'an adapter does which was started from another task''s.';
