-- Corrections: what a person says the right answer is.
--   correct_answer              of one row, by its key
--   correct_row                 of one row, if it still is as somebody has seen it
--     write_correction          the view's trigger calls it too: UPDATE ... SET correct

-- It updates the view with the caller's rights, so it may correct what an UPDATE of the view may.
CREATE FUNCTION loracomp.correct_answer(name regclass, key text, answer text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    columns CONSTANT text[] := ARRAY(
        SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = correct_answer.name AND a.attnum > 0 ORDER BY a.attnum
    );
    corrected bigint;
BEGIN
    IF columns[2] IS DISTINCT FROM 'answer' THEN
        RAISE EXCEPTION '% has no key of one column', correct_answer.name
            USING ERRCODE = 'invalid_parameter_value', HINT = format('UPDATE %s SET correct = ... WHERE ...', correct_answer.name);
    END IF;
    EXECUTE format(
        'UPDATE %s SET correct = $1 WHERE %I = CAST($2 AS %s)', correct_answer.name, columns[1],
        (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a WHERE a.attrelid = correct_answer.name AND a.attnum = 1)
    ) USING correct_answer.answer, correct_answer.key;
    GET DIAGNOSTICS corrected = ROW_COUNT;
    IF corrected = 0 THEN
        RAISE EXCEPTION '% has no row %', correct_answer.name, correct_answer.key USING ERRCODE = 'no_data_found';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.correct_answer(regclass, text, text) IS
'Says what the right answer to a row is, by its key; null takes that back.';

CREATE FUNCTION loracomp.correct_answer(name regclass, key bigint, answer text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM loracomp.correct_answer(name, key::text, answer);
END
$$;
COMMENT ON FUNCTION loracomp.correct_answer(regclass, bigint, text) IS
'Says what the right answer to a row is, by its key; null takes that back.';

-- It does not use the view, which its owner may have changed so that it runs code with the rights of whoever updates it.
CREATE FUNCTION loracomp.correct_row(
    name regclass, key text[], answer text, seen text DEFAULT NULL, job_id bigint DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.answers := loracomp.find_answers(correct_row.name);
BEGIN
    PERFORM loracomp.check_code(d.source); -- an administrator may have called
    IF NOT EXISTS (
        SELECT FROM loracomp.answer_row AS r
        WHERE r.answers_id = d.id AND r.key = correct_row.key AND r.correct IS NOT DISTINCT FROM correct_row.seen
            AND r.job_id = coalesce(correct_row.job_id, r.job_id)
    ) THEN
        RAISE EXCEPTION 'this row was corrected or answered otherwise meanwhile, or is gone'
            USING ERRCODE = 'no_data_found', HINT = 'look at it again';
    END IF;
    PERFORM loracomp.write_correction(d.id, correct_row.key, '{}', jsonb_build_object('correct', correct_row.answer));
    IF EXISTS (
        SELECT FROM loracomp.answer_row AS r
        JOIN loracomp.example AS e ON e.id = r.example_id
        JOIN loracomp.job AS j ON j.id = correct_row.job_id
        WHERE r.answers_id = d.id AND r.key = correct_row.key AND e.prompt <> j.prompt
    ) THEN
        RAISE EXCEPTION 'this row has changed since it was answered'
            USING ERRCODE = 'no_data_found', HINT = 'look at it again when it is answered again';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.correct_row IS
'Says what the right answer to a row is, for its owner and administrators, if the row''s correction still is the one that was seen, '
'and its prompt that of the job; null takes it back.';

-- The view's trigger has looked up the row with the rights of whoever updates the view.
CREATE FUNCTION loracomp.write_correction(answers_id integer, key text[], before jsonb, after jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.answers;
    wrong text;
    given CONSTANT text := after ->> 'correct';
BEGIN
    SELECT a.* INTO d FROM loracomp.answers AS a WHERE a.id = write_correction.answers_id;
    SELECT string_agg(a.key, ', ' ORDER BY a.key) INTO wrong
    FROM jsonb_each(after) AS a WHERE a.key <> 'correct' AND a.value IS DISTINCT FROM before -> a.key;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'column % of % can''t be updated', wrong, d.view
            USING ERRCODE = 'feature_not_supported', HINT = 'only correct can be; change the table itself for another prompt';
    END IF;
    IF given <> ALL (d.choices) THEN
        RAISE EXCEPTION 'correct must be one of the choices, and is %', left(given, 100)
            USING ERRCODE = 'check_violation', HINT = array_to_string(d.choices, ', ');
    END IF;
    UPDATE loracomp.answer_row AS r SET
        correct = given,
        corrected_by = CASE WHEN given IS NOT NULL THEN loracomp.caller() END,
        corrected_at = CASE WHEN given IS NOT NULL THEN now() END,
        first_answer = CASE
            WHEN r.correct IS NOT NULL THEN r.first_answer WHEN r.answered_by NOT LIKE '% corrections' THEN r.answer
        END
    WHERE r.answers_id = write_correction.answers_id AND r.key = write_correction.key;
    IF NOT found THEN
        RAISE EXCEPTION 'this row has not been asked yet' USING HINT = 'correct it in a moment';
    END IF;
    INSERT INTO loracomp.audit_event (actor, entity, entity_id, entity_name, action, reason, after)
    VALUES (
        loracomp.caller(), 'answers', write_correction.answers_id, d.view::text, 'update',
        CASE WHEN given IS NULL THEN 'correction taken back' ELSE 'corrected' END, jsonb_build_object('key', write_correction.key)
    );
END
$$;
COMMENT ON FUNCTION loracomp.write_correction IS 'Writes a correction and its event. For correct_row and the triggers of declarations'' views.';
