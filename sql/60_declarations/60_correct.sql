-- Corrections: people say what the right answers are.
--   trigger correct             of declarations' views, for UPDATE ... SET correct
--   correct_answer              corrects a row by its key
--   correct_row                 corrects a row unless it has changed since somebody saw it
--     each: write_correction
--       correction_fault        why a text can't be a correction; label_again calls it too
--       first_answer_of         the first answer to a corrected row without corrections; alter_answers calls it too

-- The view's first columns are the key, even if they were renamed, and they have the key's types. The view's owner may have added other columns.
-- These are compared as bytes, because converting them may run the owner's code.
CREATE OR REPLACE FUNCTION loracomp_parts.correct() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := (SELECT a FROM loracomp.declaration AS a WHERE a.id = tg_argv[0]::integer);
    key text[];
    expected record := new;
BEGIN
    IF d.view IS DISTINCT FROM tg_relid THEN -- pg_restore has copied the view
        RAISE EXCEPTION '% is not the view of a declaration', tg_relid::regclass
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'declare the table by loracomp.create_answers, and drop this view';
    END IF;
    IF pg_typeof(new.correct) <> 'text'::regtype THEN
        RAISE EXCEPTION 'correct is no longer the view''s own column' USING ERRCODE = 'feature_not_supported';
    END IF;
    EXECUTE (
        SELECT format('SELECT ARRAY[%s]', string_agg(format(f.written, format('($1).%I', a.attname)), ', ' ORDER BY a.attnum))
        FROM pg_attribute AS a CROSS JOIN LATERAL loracomp.key_forms(a.atttypid) AS f
        WHERE a.attrelid = tg_relid AND a.attnum BETWEEN 1 AND cardinality(d.key_columns)
    ) INTO key USING old;
    expected.correct := old.correct;
    IF NOT loracomp.write_correction(d.id, key, new.correct, changes_others => record_image_ne(old, expected)) THEN
        RETURN NULL; -- so the UPDATE does not count this row
    END IF;
    RETURN new;
END
$$;
REVOKE ALL ON FUNCTION loracomp_parts.correct FROM public;

-- It updates the view with the caller's rights, so it can correct the rows that the caller could correct by UPDATE.
CREATE FUNCTION loracomp.correct_answer(name regclass, key text, answer text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_column CONSTANT pg_attribute := (
        SELECT a FROM pg_attribute AS a WHERE a.attrelid = correct_answer.name AND a.attnum = 1
    );
    corrected bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE (a.attrelid, a.attnum, a.attname) = (correct_answer.name, 2, 'answer')) THEN
        RAISE EXCEPTION '% is not a view of answers whose key has one column', correct_answer.name
            USING ERRCODE = 'invalid_parameter_value', HINT = 'list_answers names the views; if the key has several columns: '
                'UPDATE view SET correct = ... WHERE ...';
    END IF;
    EXECUTE format(
        'UPDATE %s SET correct = $1 WHERE %I = CAST($2 AS %s)', correct_answer.name, key_column.attname,
        -- Not with the column's length, because a key that is cut would be the key of another row. A name would be cut, too.
        CASE key_column.atttypid WHEN 'name'::regtype THEN 'text' ELSE format_type(key_column.atttypid, -1) END
    ) USING correct_answer.answer, correct_answer.key;
    GET DIAGNOSTICS corrected = ROW_COUNT;
    IF corrected = 0 THEN
        RAISE EXCEPTION '% has no row % that can be corrected', correct_answer.name, correct_answer.key
            USING ERRCODE = 'no_data_found', HINT = 'a row that was just written can be corrected in a moment';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.correct_answer(regclass, text, text) IS 'Corrects the answer to a row, by its key; null withdraws the correction.';

CREATE FUNCTION loracomp.correct_answer(name regclass, key bigint, answer text) RETURNS void
LANGUAGE sql VOLATILE
RETURN loracomp.correct_answer(name, key::text, answer);
COMMENT ON FUNCTION loracomp.correct_answer(regclass, bigint, text) IS 'Corrects the answer to a row, by its key; null withdraws the correction.';

-- It does not use the view, which its owner may have changed so that it runs code with the rights of whoever updates it.
CREATE FUNCTION loracomp.correct_row(
    name regclass, key text[], answer text, seen text DEFAULT NULL, job_id bigint DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.find_declaration(correct_row.name);
BEGIN
    PERFORM FROM loracomp.answer_row AS r -- locked, because a correction may just be being committed
    WHERE r.declaration_id = d.id AND r.key = correct_row.key AND r.correct IS NOT DISTINCT FROM correct_row.seen
        AND (correct_row.job_id IS NULL OR r.job_id = correct_row.job_id)
    FOR UPDATE;
    IF NOT found AND NOT EXISTS (SELECT FROM loracomp.answer_row AS r WHERE r.declaration_id = d.id AND r.key = correct_row.key) THEN
        RAISE EXCEPTION 'no answered row has the key %', left(array_to_string(correct_row.key, ', ', 'null'), 200)
            USING ERRCODE = 'no_data_found', HINT = 'the row may have been deleted; keys must be written as list_corrections and list_answer_rows '
                'write them, for example 1 and not 01';
    ELSIF NOT found THEN
        RAISE EXCEPTION 'this row was corrected, answered again or deleted meanwhile'
            USING ERRCODE = 'no_data_found', HINT = 'look at it again';
    END IF;
    PERFORM loracomp.write_correction(d.id, correct_row.key, correct_row.answer);
    IF EXISTS (
        SELECT FROM loracomp.answer_row AS r
        JOIN loracomp.example AS e ON e.id = r.example_id
        LEFT JOIN loracomp.job AS j ON j.id = r.job_id -- it may have been purged
        WHERE r.declaration_id = d.id AND r.key = correct_row.key AND correct_row.job_id IS NOT NULL
            AND CASE WHEN j.id IS NULL THEN loracomp.request_hash(d, e.prompt) <> r.prompt_hash ELSE e.prompt <> j.prompt END
    ) THEN
        RAISE EXCEPTION 'this row has changed since it was answered'
            USING ERRCODE = 'no_data_found', HINT = 'wait until it is answered again';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.correct_row IS 'Corrects the answer to a row, unless the row has changed since it was seen; null withdraws the correction.';

CREATE FUNCTION loracomp.correction_fault(d loracomp.declaration, correct text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT CASE
        WHEN correct <> ALL (d.choices) THEN 'correct must be one of the choices, and is ' || left(correct, 100)
        WHEN d.choices IS NULL AND (loracomp.is_blank(correct) OR char_length(correct) > 4000)
            THEN format('correct must be a text of 1 to 4000 characters that is not blank, and has %s', char_length(correct))
    END;
$$;
COMMENT ON FUNCTION loracomp.correction_fault IS
'Why a text can''t be a correction of a declaration''s answers; null if it can, or if there is no text.';

-- Reads only. If the row's newest job has another prompt, other choices, descriptions or another length, or is not answered yet, take_answers
-- notes the first answer when it comes. An answer counts as helped by the corrections if they were used for it, or an adapter trained on them.
CREATE FUNCTION loracomp.first_answer_of(
    d loracomp.declaration, answered loracomp.answer_row, labelled bigint
) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT coalesce(answered.first_answer, CASE WHEN answered.status = 'answered' AND answered.corrections IS NULL AND NOT EXISTS (
        SELECT FROM loracomp.prediction AS p JOIN loracomp.task AS t ON t.id = d.task_id
        WHERE p.job_id = answered.job_id AND t.name = ANY (p.composed_tasks)
    ) THEN answered.answer END)
    FROM loracomp.example AS e WHERE e.id = labelled AND answered.prompt_hash = loracomp.request_hash(d, e.prompt);
$$;
COMMENT ON FUNCTION loracomp.first_answer_of IS
'The first answer to a row''s labelled example that was given without the help of corrections; null if it is not known yet.';

-- The caller has made sure that the row may be corrected. The prompt is read from the table as it is now.
CREATE FUNCTION loracomp.write_correction(
    declaration_id integer, key text[], correct text, changes_others boolean DEFAULT FALSE
) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
    fault text;
    labelled bigint;
    corrected_job bigint; -- the audit names the row by its job, because a key may be a person's text
    before text;
BEGIN
    -- alter_answers waits for open corrections if it changes what they are about, because it has to see all of them.
    SELECT a.* INTO d FROM loracomp.declaration AS a WHERE a.id = write_correction.declaration_id FOR KEY SHARE;
    IF changes_others THEN
        RAISE EXCEPTION 'only the column correct of % can be updated', d.view
            USING ERRCODE = 'feature_not_supported', HINT = 'to change the prompt, update the table itself';
    END IF;
    fault := loracomp.correction_fault(d, write_correction.correct);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION '%', fault USING ERRCODE = 'check_violation', HINT = coalesce(
            array_to_string(d.choices, ', '), 'each correction is measured under many adapters, which takes long for a long text'
        );
    END IF;
    SELECT r.job_id, r.correct INTO corrected_job, before FROM loracomp.answer_row AS r
    WHERE r.declaration_id = d.id AND r.key = write_correction.key FOR UPDATE;
    IF NOT found OR num_nonnulls(before, write_correction.correct) = 0 THEN
        RETURN found;
    END IF;
    IF write_correction.correct IS NOT NULL THEN
        SELECT loracomp.label_prompt(d, p.prompt, write_correction.correct) INTO labelled
        FROM loracomp.prompts_of(d, ARRAY[jsonb_build_object('key', write_correction.key)]) AS p;
    END IF;
    IF labelled IS NULL AND write_correction.correct IS NOT NULL THEN
        RAISE EXCEPTION 'this row has no prompt that can be answered, so it can''t be corrected' USING ERRCODE = 'no_data_found', HINT = 'the view has the reason';
    END IF;
    UPDATE loracomp.answer_row AS r SET
        correct = write_correction.correct, example_id = labelled, first_answer = loracomp.first_answer_of(d, r, labelled)
    WHERE r.declaration_id = d.id AND r.key = write_correction.key;
    INSERT INTO loracomp.audit_event (actor, entity, entity_id, entity_name, action, reason, after)
    VALUES (
        loracomp.caller(), 'declaration', d.id, d.view::text, 'update',
        CASE
            WHEN labelled IS NULL THEN 'correction taken back'
            WHEN before <> write_correction.correct THEN 'corrected otherwise'
            ELSE 'corrected'
        END, jsonb_build_object('job_id', corrected_job)
    );
    RETURN TRUE;
END
$$;
COMMENT ON FUNCTION loracomp.write_correction IS
'Writes a correction, its labelled example and its event. Returns false, and writes nothing, if the row has not been asked yet.';
