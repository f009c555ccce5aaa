-- Inserts jobs of kind measure, one for each example.
--   measure_task                measures a task's examples under the adapters that are likely to help
--     likely_tasks, draw_examples, has_learnt_from
--     queue_measurements        inserts the missing jobs
--       has_learnt_from
--   measure_adapter             measures one adapter on the examples on which others were measured before
--     likely_tasks, queue_measurements

-- Inserts jobs in the caller's name, with its owner's rights. If the task has an adapter, examples that it was trained on are left out, so
-- that all adapters are compared on the same rows.
CREATE FUNCTION loracomp.measure_task(
    task text,
    rows integer DEFAULT NULL,
    adapters integer DEFAULT 30,
    split text DEFAULT 'train',
    base_model text DEFAULT NULL,
    policy text DEFAULT 'measured',
    priority integer DEFAULT 0,
    seed integer DEFAULT 0
) RETURNS TABLE (examples bigint, learnt bigint, adapters_measured bigint, added bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    target CONSTANT integer := loracomp.find_task(measure_task.task);
    model CONSTANT loracomp.base_model := loracomp.find_base_model(measure_task.base_model);
    used CONSTANT loracomp.policy := loracomp.policy_with(measure_task.policy);
    likely integer[];
    chosen integer[];
    drawn bigint[];
BEGIN
    PERFORM loracomp.check_range('rows', coalesce(measure_task.rows, 1), 1, 1000000); -- null: all of them
    PERFORM loracomp.check_range('adapters', measure_task.adapters, 1, 1000);
    likely := loracomp.likely_tasks(target, model.id, measure_task.adapters);
    chosen := ARRAY(
        SELECT a.id FROM loracomp.adapter AS a
        WHERE a.base_model_id = model.id AND a.status = 'active' AND a.task_id = ANY (likely)
    );
    IF chosen = '{}' THEN
        RAISE EXCEPTION 'base model % has no active adapter to measure', model.name
            USING ERRCODE = 'no_data_found', HINT = 'add one with loracomp adapter stage, and activate it';
    END IF;
    SELECT
        coalesce(array_agg(x.example_id ORDER BY x.ordinal) FILTER (WHERE NOT x.is_learnt), '{}'),
        count(*) FILTER (WHERE x.is_learnt)
    INTO drawn, learnt
    FROM (
        SELECT m.example_id, m.ordinal, EXISTS (
            SELECT FROM loracomp.adapter AS a
            WHERE a.base_model_id = model.id AND a.task_id = target AND a.status = 'active'
                AND loracomp.has_learnt_from(a.training, measure_task.task, measure_task.task, e.split, e.content_hash)
        ) AS is_learnt
        -- Train rows are measured only if they are embedded, because jobs can't retrieve the others.
        FROM loracomp.draw_examples(
            target, measure_task.split, measure_task.seed, CASE measure_task.split WHEN 'train' THEN TRUE END
        ) AS m
        JOIN loracomp.example AS e ON e.id = m.example_id
    ) AS x;
    IF drawn = '{}' THEN
        RAISE EXCEPTION 'task % has no % example to measure: it has % with a text and a label, '
            'and its adapter has learnt from all of them', task, split, learnt
            USING ERRCODE = 'no_data_found',
                HINT = 'import rows with text and label that the adapter was not trained on; its training record names the '
                    'tasks that it was trained on (tasks_seen) and the rows that were kept aside (kept_aside)';
    END IF;
    drawn := drawn[:coalesce(measure_task.rows, cardinality(drawn))];
    examples := cardinality(drawn);
    adapters_measured := cardinality(chosen);
    added := loracomp.queue_measurements(drawn, chosen, model, used.name, measure_task.priority);
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION loracomp.measure_task IS
'Inserts jobs that measure how much adapters improve answers to a task''s examples: a job of kind measure for each example, under '
'the task''s own adapter and the adapters of the nearest tasks. Examples that the task''s own adapter was trained on are left out and '
'counted.';

-- Inserts jobs in the caller's name, with its owner's rights.
CREATE FUNCTION loracomp.measure_adapter(
    adapter_id integer, tasks integer DEFAULT 30, policy text DEFAULT 'measured', priority integer DEFAULT 0
) RETURNS TABLE (examples bigint, added bigint, learnt bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    measured loracomp.adapter;
    model loracomp.base_model;
    used CONSTANT loracomp.policy := loracomp.policy_with(measure_adapter.policy);
    likely integer[];
    known bigint[];
BEGIN
    PERFORM loracomp.check_range('tasks', measure_adapter.tasks, 1, 1000);
    SELECT * INTO measured FROM loracomp.adapter AS a WHERE a.id = measure_adapter.adapter_id;
    IF measured.id IS NULL THEN
        RAISE EXCEPTION 'there is no adapter with id %', measure_adapter.adapter_id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list shows the existing ones';
    END IF;
    SELECT * INTO model FROM loracomp.base_model AS b WHERE b.id = measured.base_model_id;
    likely := loracomp.likely_tasks(measured.task_id, model.id, measure_adapter.tasks);
    known := ARRAY(
        SELECT m.example_id FROM loracomp.measurement AS m
        JOIN loracomp.example AS e ON e.id = m.example_id
        WHERE m.base_model_id = model.id AND e.prompt IS NOT NULL AND e.label IS NOT NULL
            -- Include tasks without an adapter. They are never among the nearest tasks, but any adapter may help with them.
            AND (m.task_id = ANY (likely) OR NOT EXISTS (
                SELECT FROM loracomp.adapter AS a
                WHERE a.task_id = m.task_id AND a.base_model_id = model.id AND a.status = 'active'
            ))
        ORDER BY m.example_id
    );
    IF known = '{}' THEN
        RAISE EXCEPTION 'adapter %@% can''t be measured yet: no example of its task or of the nearest tasks is measured',
            measured.name, measured.version
            USING ERRCODE = 'no_data_found', HINT = 'measure its task first: SELECT * FROM loracomp.measure_task(...)';
    END IF;
    examples := cardinality(known);
    learnt := (
        SELECT count(*) FROM loracomp.example AS e
        JOIN loracomp.task AS t ON t.id = e.task_id
        JOIN loracomp.task AS o ON o.id = measured.task_id
        WHERE e.id = ANY (known) AND loracomp.has_learnt_from(measured.training, o.name, t.name, e.split, e.content_hash)
    );
    added := loracomp.queue_measurements(known, ARRAY[measured.id], model, used.name, measure_adapter.priority);
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION loracomp.measure_adapter IS
'Inserts jobs that measure an adapter, active or not, on the examples on which other adapters were measured before. These are examples '
'of its own task, of the nearest tasks and of tasks without an adapter. Examples that the adapter was trained on are left out and counted.';

-- Inserts a job for each example that is not yet measured under all the adapters. It leaves out measurements that are done or queued, and examples
-- that an adapter was trained on. It also leaves out examples whose prompt or choices the table job would refuse, because one of them would make
-- the whole INSERT fail, and examples whose right answer is a blank text, because a blank text has no tokens to score.
CREATE FUNCTION loracomp.queue_measurements(
    example_ids bigint[], adapter_ids integer[], base_model loracomp.base_model, policy text, priority integer,
    submitted_by name DEFAULT loracomp.caller()
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    added bigint;
BEGIN
    -- Lock the base model, because two concurrent calls would insert the same jobs.
    PERFORM FROM loracomp.base_model AS b WHERE b.id = queue_measurements.base_model.id FOR NO KEY UPDATE;
    INSERT INTO loracomp.job (
        kind, prompt, choices, policy, base_model, task, expected, example_id, adapter_ids, priority, submitted_by
    )
    SELECT
        'measure', e.prompt, e.choices, queue_measurements.policy, queue_measurements.base_model.name, t.name, e.label,
        e.id, array_agg(a.id ORDER BY a.id), queue_measurements.priority, queue_measurements.submitted_by
    FROM unnest(queue_measurements.example_ids) WITH ORDINALITY AS u (example_id, ordinal)
    JOIN loracomp.example AS e ON e.id = u.example_id
    JOIN loracomp.task AS t ON t.id = e.task_id
    JOIN loracomp.policy AS p ON p.name = queue_measurements.policy
    CROSS JOIN loracomp.adapter AS a
    JOIN loracomp.task AS o ON o.id = a.task_id
    WHERE a.id = ANY (queue_measurements.adapter_ids)
        AND NOT loracomp.is_blank(e.prompt) AND char_length(e.prompt) <= 1000000
        AND CASE
            WHEN e.choices IS NULL THEN NOT loracomp.is_blank(e.label)
            WHEN array_ndims(e.choices) = 1 AND array_lower(e.choices, 1) = 1 AND cardinality(e.choices) BETWEEN 2 AND 1000
                THEN loracomp.texts_are_not_blank(e.choices) AND loracomp.texts_are_distinct(e.choices)
                    AND loracomp.texts_length(e.choices) <= 1000000
            ELSE FALSE
        END
        AND NOT loracomp.has_learnt_from(a.training, o.name, t.name, e.split, e.content_hash)
        AND NOT EXISTS (
            SELECT FROM loracomp.measurement AS m
            WHERE m.example_id = e.id AND m.base_model_id = a.base_model_id
                AND m.choice_normalization = p.choice_normalization AND a.id = ANY (m.adapter_ids)
                AND m.chat_template = loracomp.in_chat_template(
                    p.chat_template, (queue_measurements.base_model).has_chat_template, e.choices
                )
        )
        AND NOT EXISTS (
            SELECT FROM loracomp.job AS j
            JOIN loracomp.policy AS q ON q.name = j.policy
                AND (q.choice_normalization, q.chat_template) = (p.choice_normalization, p.chat_template)
            WHERE j.kind = 'measure' AND j.finished_at IS NULL AND j.example_id = e.id AND a.id = ANY (j.adapter_ids)
        )
    GROUP BY u.ordinal, e.id, t.name
    ORDER BY u.ordinal;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;
COMMENT ON FUNCTION loracomp.queue_measurements IS
'Inserts jobs that measure these adapters on these examples, unless the measurement is done or queued or the adapter was trained '
'on the example; returns how many. Examples are measured again after the policy''s choice_normalization or chat_template changed.';
