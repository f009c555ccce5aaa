-- Corrections become labelled examples, which help to answer later jobs of the declaration.
--   add_own_task                adds the declaration's own task; create_answers calls it
--   prompts_of                  the prompts of rows; write_correction calls it too
--   label_prompt                adds the example of a corrected row; write_correction calls it too
--     add_own_task
--   label_again                 does this for all corrected rows, after the prompt or the choices have changed
--     correction_fault          60_correct.sql
--     prompts_of, label_prompt
--   clear_corrections           clears corrections whose example is erased: 85_administration/20_erase.sql
--   measure_corrections         a step of the keeper: measures corrections if there are eight or more
--     has_unmeasured
--       is_measured
--   compare_with_corrections    accuracy of an adapter that was trained on corrections, and accuracy without it
--   try_prompts                 the first prompts of a table, without a declaration

-- The task is added together with the declaration. If the first correction added it, that would lock the declaration until it is committed.
CREATE FUNCTION loracomp.add_own_task(d loracomp.declaration) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    -- No library has tasks with such names.
    task CONSTANT text := format('answers/%s-%s', regexp_replace(d.view::text, '[[:cntrl:]/]', '_', 'g'), d.id);
BEGIN
    PERFORM loracomp.add_task(task, 'answers', format('Corrections of %s.', d.view), d.owner);
    RETURN (SELECT t.id FROM loracomp.task AS t WHERE t.name = task);
END
$$;
COMMENT ON FUNCTION loracomp.add_own_task IS
'Adds the task whose labelled examples are a declaration''s corrections, and which only jobs of its owner may use; returns its id.';

-- Reads only.
CREATE FUNCTION loracomp.prompts_of(d loracomp.declaration, keys jsonb[]) RETURNS TABLE (key text[], prompt text)
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    page jsonb;
BEGIN
    d := loracomp.with_all_columns(d);
    WHILE keys <> '{}' LOOP
        page := loracomp.read_rows(d, to_jsonb(keys[: 200]));
        RETURN QUERY SELECT f.key, f.prompt FROM jsonb_to_recordset(page) AS f (key text[], prompt text);
        keys := keys[jsonb_array_length(page) + 1 :];
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.prompts_of IS
'The prompts of rows as the table is now; null for a row that is gone, does not pass the filter, or is refused because of its prompt. Raises if a '
'column of the prompt was dropped.';

-- Rows with the same prompt and label share an example. It is not added by add_example, because that locks the task, and corrections of other
-- rows would wait until this one is committed. Returns null if there is no correction, or if the row is refused because of its prompt.
CREATE FUNCTION loracomp.label_prompt(d loracomp.declaration, prompt text, correct text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    hash CONSTANT bytea := loracomp.content_hash(prompt, correct, d.choices);
    labelled bigint;
BEGIN
    IF num_nulls(prompt, correct) > 0 THEN
        RETURN NULL;
    END IF;
    IF d.task_id IS NULL THEN -- an administrator has deleted it
        d.task_id := loracomp.add_own_task(d);
        UPDATE loracomp.declaration AS a SET task_id = d.task_id WHERE a.id = d.id;
    END IF;
    LOOP -- the keeper may just be deleting the example of another row with this prompt
        INSERT INTO loracomp.example (task_id, split, prompt, choices, label, content_hash)
        VALUES (d.task_id, 'train', label_prompt.prompt, d.choices, correct, hash)
        ON CONFLICT (task_id, content_hash) DO NOTHING;
        SELECT e.id INTO labelled FROM loracomp.example AS e WHERE e.task_id = d.task_id AND e.content_hash = hash FOR KEY SHARE;
        IF found THEN
            RETURN labelled;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.label_prompt IS 'Adds a corrected row''s prompt to the declaration''s examples; returns the example''s id.';

-- A correction is deleted if nobody could make it any more: if it is not one of the new choices, if it is too long for a generated text, or if the
-- row's new prompt is empty. It is also deleted if the row was edited and the keeper has not seen that yet, because nobody has judged the new text.
-- Whether it was can't be told if a column of the old prompt is gone.
CREATE FUNCTION loracomp.label_again(before loracomp.declaration, d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    corrected CONSTANT jsonb[] := ARRAY(
        SELECT jsonb_build_object('key', r.key) FROM loracomp.answer_row AS r WHERE r.declaration_id = d.id AND r.example_id IS NOT NULL
    );
BEGIN
    IF num_nulls(VARIADIC loracomp.source_names(before.source, before.columns)) = 0 THEN
        UPDATE loracomp.answer_row AS r SET correct = NULL, first_answer = NULL
        FROM loracomp.prompts_of(before, corrected) AS p, loracomp.example AS e
        WHERE r.declaration_id = d.id AND r.key = p.key AND e.id = r.example_id AND e.prompt IS DISTINCT FROM p.prompt;
    END IF;
    UPDATE loracomp.answer_row AS r SET correct = NULL, first_answer = NULL
    WHERE r.declaration_id = d.id AND loracomp.correction_fault(d, r.correct) IS NOT NULL;
    UPDATE loracomp.answer_row AS r SET example_id = loracomp.label_prompt(d, p.prompt, r.correct)
    FROM loracomp.prompts_of(d, corrected) AS p
    WHERE r.declaration_id = d.id AND r.key = p.key AND r.example_id IS NOT NULL;
    UPDATE loracomp.answer_row AS r SET correct = NULL, first_answer = NULL, draw_number = NULL
    WHERE r.declaration_id = d.id AND r.correct IS NOT NULL AND r.example_id IS NULL;
END
$$;
COMMENT ON FUNCTION loracomp.label_again IS 'Makes the examples of a declaration''s corrected rows again, after its prompt or choices changed.';

CREATE FUNCTION loracomp.clear_corrections(example_id bigint) RETURNS bigint
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    WITH cleared AS (
        UPDATE loracomp.answer_row AS r SET correct = NULL, first_answer = NULL, draw_number = NULL, example_id = NULL
        WHERE r.example_id = clear_corrections.example_id RETURNING r.key
    )
    SELECT count(*) FROM cleared;
$$;
COMMENT ON FUNCTION loracomp.clear_corrections IS
'Clears the corrections whose labelled example is being erased; returns how many. For erase_example.';

-- Inserts jobs in the name of the declarations' owners. If that fails for a declaration, for example because the queue is full, the declaration
-- is left out for ten seconds. A declaration for which there is nothing to insert, for example because no adapter has learnt to write, is left out
-- for a minute. A declaration at which the keeper's timeout expires is left out for ten minutes. The declaration is locked before the block whose
-- failure is handled, because the failure would release a lock that is taken inside, and the handler might wait for whoever got it then.
CREATE FUNCTION loracomp.measure_corrections() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
    model loracomp.base_model;
    end_at CONSTANT timestamptz := clock_timestamp() + interval '0.2 seconds';
    likely integer[];
    queued integer;
    added integer := 0;
BEGIN
    SELECT b.* INTO model FROM loracomp.base_model AS b WHERE b.is_default;
    FOR d IN
        SELECT a.* FROM loracomp.declaration AS a
        WHERE NOT a.paused AND a.measure_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '10 minutes'
            AND 8 = (SELECT count(*) FROM (SELECT FROM loracomp.example_embedding AS v WHERE v.task_id = a.task_id LIMIT 8) AS v)
        ORDER BY random() FOR NO KEY UPDATE OF a SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > end_at;
        BEGIN
            CONTINUE WHEN NOT loracomp.has_unmeasured(d.task_id, model.id);
            likely := loracomp.likely_tasks(d.task_id, model.id, 30);
            -- Routing uses no other adapters for texts either.
            likely := CASE WHEN d.choices IS NULL THEN loracomp.generating_tasks(likely) ELSE likely END;
            queued := loracomp.queue_measurements(
                -- Only 200 examples, beginning with unmeasured ones, because inserting the jobs of twenty thousand takes longer than the timeout.
                ARRAY(
                    SELECT x.example_id FROM loracomp.draw_examples(d.task_id, 'train', 0, TRUE) AS x
                    ORDER BY loracomp.is_measured(x.example_id, model.id), random() LIMIT 200
                ),
                ARRAY(
                    SELECT a.id FROM loracomp.adapter AS a
                    WHERE a.base_model_id = model.id AND a.status = 'active' AND a.task_id = ANY (likely)
                ),
                model, 'measured', 0, d.owner
            );
            added := added + queued;
            IF queued = 0 THEN
                UPDATE loracomp.declaration AS a SET measure_at = clock_timestamp() + interval '1 minute' WHERE a.id = d.id;
            END IF;
        EXCEPTION WHEN query_canceled OR OTHERS THEN -- OTHERS does not include query_canceled
            RAISE WARNING 'the corrections of declaration % are not measured: %', d.id, sqlerrm;
            UPDATE loracomp.declaration AS a
            SET measure_at = clock_timestamp() + CASE sqlstate WHEN '57014' THEN interval '10 minutes' ELSE interval '10 seconds' END
            WHERE a.id = d.id;
        END;
    END LOOP;
    RETURN added;
END
$$;
COMMENT ON FUNCTION loracomp.measure_corrections IS
'Inserts jobs that measure the corrections of declarations with eight or more; returns the number of jobs. For the keeper.';

-- Reads only. An example whose measurement has failed is not measured again.
CREATE FUNCTION loracomp.is_measured(example_id bigint, base_model_id integer) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM loracomp.measurement AS m
        WHERE m.example_id = is_measured.example_id AND m.base_model_id = is_measured.base_model_id
    ) OR EXISTS (SELECT FROM loracomp.job AS j WHERE j.kind = 'measure' AND j.example_id = is_measured.example_id);
END;
COMMENT ON FUNCTION loracomp.is_measured IS 'Whether an example is measured, or has a job that measures it.';

-- Reads only.
CREATE FUNCTION loracomp.has_unmeasured(task_id integer, base_model_id integer) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT count(*) >= 8 AND NOT bool_and(loracomp.is_measured(v.example_id, has_unmeasured.base_model_id))
    FROM loracomp.example_embedding AS v WHERE v.task_id = has_unmeasured.task_id;
END;
COMMENT ON FUNCTION loracomp.has_unmeasured IS 'Whether a task has at least eight embedded examples, and at least one of them is not measured.';

-- Reads only. It compares rows that the adapter was not trained on, and that were answered with the help of the other corrections.
CREATE FUNCTION loracomp.compare_with_corrections(adapter_id integer)
RETURNS TABLE (examples bigint, accuracy double precision, other_accuracy double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT
        count(*), avg(m.are_right[array_position(m.adapter_ids, a.id)]::integer)::double precision,
        avg((r.answer = r.correct)::integer)::double precision
    FROM loracomp.adapter AS a
    JOIN loracomp.declaration AS d ON d.task_id = a.task_id
    JOIN loracomp.answer_row AS r ON r.declaration_id = d.id AND r.answered_by = 'corrections'
    JOIN loracomp.measurement AS m ON m.example_id = r.example_id AND m.base_model_id = a.base_model_id
    WHERE a.id = compare_with_corrections.adapter_id AND a.id = ANY (m.adapter_ids);
$$;
COMMENT ON FUNCTION loracomp.compare_with_corrections IS 'Accuracy of an adapter on held-out corrections, and accuracy of the policy measured on the same rows without this adapter.';

-- The objects that it makes to read the rows are rolled back.
CREATE FUNCTION loracomp.try_prompts(source regclass, prompt text, filter jsonb DEFAULT '{}')
RETURNS TABLE (filled text, text_at int4range)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
    keys jsonb;
    position text[];
    prompts text[] := '{}';
BEGIN
    d := loracomp.check_source(try_prompts.source, try_prompts.prompt, try_prompts.filter);
    d.id := nextval(pg_get_serial_sequence('loracomp.declaration', 'id'));
    BEGIN
        PERFORM loracomp.make_parts(d);
        WHILE cardinality(prompts) < 3 LOOP
            keys := loracomp.next_keys(d, position, 500, loracomp.filter_condition(d));
            EXIT WHEN keys = '[]';
            keys := loracomp.read_rows(d, keys);
            prompts := prompts || ARRAY(SELECT f.prompt FROM jsonb_to_recordset(keys) AS f (prompt text) WHERE f.prompt IS NOT NULL);
            position := ARRAY(SELECT jsonb_array_elements_text(keys -> -1 -> 'key'));
        END LOOP;
        RAISE EXCEPTION USING ERRCODE = 'LC001';
    EXCEPTION WHEN SQLSTATE 'LC001' THEN NULL;
    END;
    RETURN QUERY
    SELECT p.filled, int4range(1 + m.before, 1 + char_length(p.filled) - m.after)
    FROM loracomp.prompt_margins(try_prompts.prompt) AS m
    CROSS JOIN unnest(prompts) WITH ORDINALITY AS p (filled, ordinal) ORDER BY p.ordinal LIMIT 3;
END
$$;
COMMENT ON FUNCTION loracomp.try_prompts IS 'The prompts that create_answers would make from the first three rows of a table, each with the text_at of its job; declares '
'nothing.';
