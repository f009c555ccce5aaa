-- Corrections as labelled examples, by which a declaration's jobs are answered:
--   trigger label_row           of answer_row: makes or removes the example of a corrected row
--     label_prompt
--       task_of                 the declaration's task, which is made with its first correction
--   label_again                 alter_answers calls it, for another prompt or other choices
--   trigger unlabel             of answer_row: removes the example of a row that has gone or has another prompt
--   measure_corrections         from eight corrections on, measures them; add_embeddings calls it with what it embedded
--   policy_of                   measured from sixteen measured corrections on, until there is an adapter of their own
--   trigger ask_corrected       of measurement: from then on asks corrected rows again, to see what the corrections brought
--   rows_to_correct             which rows are worth correcting first
--   compare_with_corrections    an adapter that was trained on corrections, with what they are worth without it
--   try_prompts                 the first prompts, without a declaration

-- Only the owner's jobs may use the task. Its name can't be that of a task of a library.
CREATE FUNCTION loracomp.task_of(d loracomp.answers) RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    named text := (SELECT t.name FROM loracomp.task AS t WHERE t.id = d.task_id);
BEGIN
    IF named IS NULL THEN
        named := format('answers/%s-%s', d.view, d.id);
        PERFORM loracomp.add_task(named, 'answers', format('Corrections of %s.', d.view), d.owner);
        UPDATE loracomp.answers AS a SET task_id = t.id FROM loracomp.task AS t WHERE a.id = d.id AND t.name = named;
    END IF;
    RETURN named;
END
$$;
COMMENT ON FUNCTION loracomp.task_of IS 'Name of the task of a declaration''s corrections; makes it if there is none.';

-- The prompt is read from the table as it is now. Rows with the same prompt and answer share an example.
CREATE FUNCTION loracomp.label_prompt(d loracomp.answers, key text[], correct text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    asked CONSTANT text := loracomp.read_rows(d, jsonb_build_array(jsonb_build_object('key', key)), 1) #>> '{0,prompt}';
    task CONSTANT text := loracomp.task_of(d);
BEGIN
    IF asked IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM loracomp.add_example(task, asked, correct, d.choices);
    RETURN (
        SELECT e.id FROM loracomp.example AS e JOIN loracomp.task AS t ON t.id = e.task_id
        WHERE t.name = task AND e.content_hash = loracomp.content_hash(asked, correct, d.choices)
    );
END
$$;
COMMENT ON FUNCTION loracomp.label_prompt IS 'Adds a row''s prompt and right answer to the declaration''s examples; returns the example''s id, null if the row has nothing to ask.';

CREATE FUNCTION loracomp.label_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    labelled CONSTANT bigint := (
        SELECT loracomp.label_prompt(a, new.key, new.correct) FROM loracomp.answers AS a
        WHERE a.id = new.answers_id AND new.correct IS NOT NULL
    );
BEGIN
    IF new.correct IS NOT NULL AND labelled IS NULL THEN
        RAISE EXCEPTION 'this row has nothing to ask' USING ERRCODE = 'no_data_found', HINT = 'the view has the reason';
    END IF;
    UPDATE loracomp.answer_row AS r SET example_id = labelled
    WHERE r.answers_id = new.answers_id AND r.key = new.key AND r.example_id IS DISTINCT FROM labelled;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.label_row IS 'Trigger: makes the labelled example of a corrected row, or removes it with its correction.';

CREATE TRIGGER label_corrected AFTER UPDATE ON loracomp.answer_row
FOR EACH ROW WHEN (old.correct IS DISTINCT FROM new.correct) EXECUTE FUNCTION loracomp.label_row();

-- A correction that is none of the new choices goes.
CREATE FUNCTION loracomp.label_again(d loracomp.answers) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.check_code(d.source); -- an administrator may have called
    UPDATE loracomp.answer_row AS r SET correct = NULL WHERE r.answers_id = d.id AND r.correct <> ALL (d.choices);
    UPDATE loracomp.answer_row AS r SET example_id = loracomp.label_prompt(d, r.key, r.correct)
    WHERE r.answers_id = d.id AND r.example_id IS NOT NULL;
END
$$;
COMMENT ON FUNCTION loracomp.label_again IS 'Makes the labelled examples of corrected rows again, for another prompt or other choices.';

-- A correction is of a prompt: another one has none. Jobs that measure the example have its text, so they are erased too.
CREATE FUNCTION loracomp.unlabel() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF tg_op = 'UPDATE' AND new.example_id = old.example_id THEN
        UPDATE loracomp.answer_row AS r
        SET correct = NULL, corrected_by = NULL, corrected_at = NULL, first_answer = NULL, drawn = FALSE, example_id = NULL
        WHERE r.answers_id = new.answers_id AND r.key = new.key AND new.prompt_hash <> '' AND NOT EXISTS (
            SELECT FROM loracomp.example AS e JOIN loracomp.job AS j ON (j.prompt, j.choices) IS NOT DISTINCT FROM (e.prompt, e.choices)
            WHERE e.id = old.example_id AND j.id = new.job_id
        );
    ELSIF NOT EXISTS (SELECT FROM loracomp.answer_row AS r WHERE r.example_id = old.example_id) THEN
        PERFORM loracomp.delete_jobs(ARRAY(
            SELECT j.id FROM loracomp.job AS j WHERE j.kind = 'measure' AND j.example_id = old.example_id
        ));
        DELETE FROM loracomp.example AS e WHERE e.id = old.example_id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.unlabel IS 'Trigger: removes the example of a row that has gone, has another prompt, or is corrected otherwise.';

CREATE TRIGGER unlabel_changed AFTER UPDATE ON loracomp.answer_row
FOR EACH ROW WHEN (
    old.example_id IS NOT NULL AND (old.example_id, old.prompt_hash) IS DISTINCT FROM (new.example_id, new.prompt_hash)
) EXECUTE FUNCTION loracomp.unlabel();
CREATE TRIGGER unlabel_deleted AFTER DELETE ON loracomp.answer_row
FOR EACH ROW WHEN (old.example_id IS NOT NULL) EXECUTE FUNCTION loracomp.unlabel();

-- Inserts jobs in the name of the declaration's owner. If they can't be inserted, such as into a full queue, the next correction's
-- embedding tries again.
CREATE FUNCTION loracomp.measure_corrections(example_ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.answers;
    model loracomp.base_model;
    labelled bigint[];
BEGIN
    FOR d IN
        SELECT a.* FROM loracomp.answers AS a
        WHERE a.task_id IN (SELECT e.task_id FROM loracomp.example AS e WHERE e.id = ANY (measure_corrections.example_ids))
        ORDER BY a.id
    LOOP
        labelled := ARRAY(SELECT m.example_id FROM loracomp.draw_examples(d.task_id, 'train', 0, TRUE) AS m ORDER BY m.place);
        CONTINUE WHEN cardinality(labelled) < 8;
        BEGIN
            model := loracomp.find_base_model(NULL);
            PERFORM loracomp.queue_measurements(
                labelled,
                ARRAY(
                    SELECT a.id FROM loracomp.adapter AS a
                    WHERE a.base_model_id = model.id AND a.status = 'active'
                        AND a.task_id = ANY (loracomp.likely_tasks(d.task_id, model.id, 30))
                ),
                model, 'default', 0, d.owner
            );
        EXCEPTION WHEN configuration_limit_exceeded OR no_data_found OR lock_not_available THEN
            CONTINUE;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.measure_corrections IS
'Inserts the missing measurements of declarations that have one of these examples, and eight or more. For add_embeddings.';

-- Reads only. An adapter of the declaration's own was activated because it was measured to be better than the corrections without it;
-- `measured` would weigh it like all others.
CREATE FUNCTION loracomp.policy_of(d loracomp.answers) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT CASE WHEN count(*) >= 16 THEN 'measured' ELSE d.policy END
    FROM loracomp.measurement AS m JOIN loracomp.base_model AS b ON b.id = m.base_model_id AND b.is_default
    WHERE m.task_id = d.task_id AND NOT EXISTS (
        SELECT FROM loracomp.adapter AS a WHERE (a.task_id, a.base_model_id, a.status) = (d.task_id, b.id, 'active')
    );
$$;
COMMENT ON FUNCTION loracomp.policy_of IS
'Policy of a declaration''s next jobs: measured once sixteen corrections are measured, unless it has an adapter of its own.';

-- A corrected row is answered without its own label, so its new answer tells what the others brought.
CREATE FUNCTION loracomp.ask_corrected() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM loracomp.answers AS a JOIN measured AS m ON m.task_id = a.task_id) THEN
        WITH again AS (
            UPDATE loracomp.answer_row AS r SET prompt_hash = ''
            FROM loracomp.answers AS a
            WHERE a.task_id IN (SELECT m.task_id FROM measured AS m) AND loracomp.policy_of(a) <> a.policy
                AND r.answers_id = a.id AND r.example_id IS NOT NULL AND r.prompt_hash <> ''
                AND NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = r.job_id AND j.policy = 'measured')
            RETURNING r.answers_id, r.key
        )
        INSERT INTO loracomp.answer_hint (answers_id, key) SELECT g.answers_id, g.key FROM again AS g;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.ask_corrected IS 'Trigger: once sixteen corrections of a declaration are measured, asks the corrected rows again.';

CREATE TRIGGER ask_corrected AFTER INSERT ON loracomp.measurement REFERENCING NEW TABLE AS measured
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.ask_corrected();

-- Marks the rows that it draws at random, so that their accuracy is that of all rows; drawn rows that were not corrected yet come
-- first. Corrections of the least confident rows teach less (docs/decisions.md). The declaration is locked, so two visitors
-- don't get the same. Without a visitor a call repeats what was drawn and is not corrected.
CREATE FUNCTION loracomp.rows_to_correct(name regclass, n integer DEFAULT 16, visitor text DEFAULT NULL)
RETURNS TABLE (key text[], prompt text, answer text, confidence double precision, drawn boolean, job_id bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    d CONSTANT loracomp.answers := loracomp.find_answers(rows_to_correct.name);
BEGIN
    PERFORM loracomp.check_range('n', rows_to_correct.n, 1, 10000);
    DELETE FROM loracomp.answer_offer AS o WHERE o.answers_id = d.id AND o.offered_at < now() - interval '10 minutes';
    UPDATE loracomp.answer_offer AS o SET offered_at = now() WHERE o.answers_id = d.id AND o.visitor = rows_to_correct.visitor;
    RETURN QUERY
    SELECT r.key, j.prompt, r.answer, r.confidence, r.drawn, r.job_id
    FROM loracomp.answer_offer AS o JOIN loracomp.answer_row AS r USING (answers_id, key) LEFT JOIN loracomp.job AS j ON j.id = r.job_id
    WHERE o.answers_id = d.id AND o.visitor = rows_to_correct.visitor AND r.answer IS NOT NULL AND r.correct IS NULL
    ORDER BY r.drawn DESC, r.confidence, r.key LIMIT rows_to_correct.n;
    IF found THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH chosen AS MATERIALIZED (
        SELECT u.key FROM (
            SELECT a.key, a.drawn FROM loracomp.answer_row AS a
            WHERE a.answers_id = d.id AND a.answer IS NOT NULL AND a.correct IS NULL
            ORDER BY a.drawn DESC, random()
            LIMIT rows_to_correct.n + (SELECT count(*) FROM loracomp.answer_offer AS o WHERE o.answers_id = d.id)
        ) AS u
        -- Looked up for few, and not for each of millions.
        WHERE u.key NOT IN (SELECT o.key FROM loracomp.answer_offer AS o WHERE o.answers_id = d.id)
        ORDER BY u.drawn DESC LIMIT rows_to_correct.n
    ), marked AS (
        UPDATE loracomp.answer_row AS r SET drawn = TRUE FROM chosen AS c WHERE r.answers_id = d.id AND r.key = c.key AND NOT r.drawn
    ), offered AS (
        INSERT INTO loracomp.answer_offer (answers_id, key, visitor, offered_at)
        SELECT d.id, c.key, rows_to_correct.visitor, now() FROM chosen AS c WHERE rows_to_correct.visitor IS NOT NULL
    )
    SELECT r.key, j.prompt, r.answer, r.confidence, TRUE, r.job_id
    FROM chosen AS c JOIN loracomp.answer_row AS r ON r.answers_id = d.id AND r.key = c.key
    LEFT JOIN loracomp.job AS j ON j.id = r.job_id -- it may have been purged
    ORDER BY r.confidence, r.key;
END
$$;
COMMENT ON FUNCTION loracomp.rows_to_correct IS
'Rows of a declaration that are worth correcting: drawn at random, so that list_answers can tell what corrections brought. What a '
'visitor got nobody else gets for ten minutes.';

-- Reads only. The rows are those that the adapter was not trained on; their answers by corrections left their own label out.
CREATE FUNCTION loracomp.compare_with_corrections(adapter_id integer)
RETURNS TABLE (examples bigint, accuracy double precision, other_accuracy double precision)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
    SELECT
        count(*), avg(m.are_right[array_position(m.adapter_ids, a.id)]::integer)::double precision,
        avg((r.answer = r.correct)::integer)::double precision
    FROM loracomp.adapter AS a
    JOIN loracomp.answers AS d ON d.task_id = a.task_id
    JOIN loracomp.answer_row AS r ON r.answers_id = d.id AND r.answered_by LIKE '% corrections'
    JOIN loracomp.measurement AS m ON m.example_id = r.example_id AND m.base_model_id = a.base_model_id
    WHERE a.id = compare_with_corrections.adapter_id AND a.id = ANY (m.adapter_ids);
$$;
COMMENT ON FUNCTION loracomp.compare_with_corrections IS
'On the corrected rows that an adapter of a declaration''s own was measured on: how many it answers right, and how many the corrections '
'without it do.';

-- For create_answers, without making anything: what it made is undone.
CREATE FUNCTION loracomp.try_prompts(source regclass, prompt text, filter jsonb DEFAULT '{}') RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.answers;
    found_rows jsonb;
BEGIN
    LOCK TABLE loracomp.answers IN SHARE UPDATE EXCLUSIVE MODE; -- as create_answers does
    d := loracomp.check_source(try_prompts.source, try_prompts.prompt, try_prompts.filter);
    d.id := nextval(pg_get_serial_sequence('loracomp.answers', 'id'));
    BEGIN
        PERFORM loracomp.make_parts(d);
        found_rows := loracomp.read_rows(d, NULL, 500);
        RAISE EXCEPTION USING ERRCODE = 'LC001';
    EXCEPTION WHEN SQLSTATE 'LC001' THEN NULL;
    END;
    RETURN QUERY
    SELECT f.prompt FROM jsonb_to_recordset(found_rows) AS f (prompt text, is_asked boolean)
    WHERE f.is_asked AND f.prompt IS NOT NULL LIMIT 3;
END
$$;
COMMENT ON FUNCTION loracomp.try_prompts IS 'The first three prompts that create_answers would ask of a table; declares nothing.';
