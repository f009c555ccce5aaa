-- Changes and drops declarations.
--   alter_answers
--     lock_to_alter                   locks declarations with their corrections; drop_answers and lock_views call it too
--     lock_declaration                enough if no correction changes
--     with_other_source
--       check_source                  28_check.sql
--     check_certain, check_request    28_check.sql
--     replace_view
--       make_view                     30_declare.sql
--     begin_scan                      37_scan.sql
--     label_again                     70_learn.sql
--     first_answer_of                 60_correct.sql
--   cancel_answers
--     lock_declaration
--     begin_scan                      37_scan.sql
--     unfinished_jobs                 forget_answers calls it too
--   drop_answers
--     lock_to_alter
--     forget_answers                  the keeper and erase_submitter call it too
--   lock_declaration                  find_declaration, and locks the declaration
--     find_declaration                the declaration of a view; correct_row and list_answer_rows call it too
--       may_alter_answers             list_answers and bring_view_back call it too

-- Reads only. The owner of the table counts too, because the table may have got another owner, who must be able to drop the declaration.
CREATE FUNCTION loracomp.may_alter_answers(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT loracomp.caller_is_admin() OR coalesce(pg_has_role(loracomp.caller(), to_regrole(quote_ident(d.owner)), 'usage'), FALSE)
        OR EXISTS (SELECT FROM pg_class AS c WHERE c.oid = d.source AND pg_has_role(loracomp.caller(), c.relowner, 'usage'));
$$;
COMMENT ON FUNCTION loracomp.may_alter_answers IS
'Whether the caller may see and change a declaration: as an administrator, or as a member of the role that owns it or its table.';

-- Reads only.
CREATE FUNCTION loracomp.find_declaration(name regclass) RETURNS loracomp.declaration
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := (SELECT a FROM loracomp.declaration AS a WHERE a.view = find_declaration.name);
BEGIN
    IF d.id IS NULL OR NOT loracomp.may_alter_answers(d) THEN
        RAISE EXCEPTION '% is not a declaration of yours', coalesce(find_declaration.name::text, 'this')
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.list_answers() lists them';
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.find_declaration IS 'The declaration of a view. Raises unless the caller may change it.';

CREATE FUNCTION loracomp.lock_declaration(name regclass) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM loracomp.find_declaration(lock_declaration.name); -- nobody else may lock it
    PERFORM FROM loracomp.declaration AS a WHERE a.view = lock_declaration.name FOR NO KEY UPDATE;
    RETURN (SELECT loracomp.find_declaration(lock_declaration.name));
END
$$;
COMMENT ON FUNCTION loracomp.lock_declaration IS
'The declaration of a view, locked until the transaction ends, but not against corrections. Raises unless the caller may change it.';

-- A correction locks the declaration FOR KEY SHARE. Others correct and draw rows in any order. So that they and this call never wait for each other, it
-- gives up all locks if it can't have all of them at once, and tries again. The caller has made sure that the declarations may be locked.
CREATE FUNCTION loracomp.lock_to_alter(names regclass[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    until CONSTANT timestamptz := clock_timestamp() + interval '10 seconds';
    ids CONSTANT integer[] := ARRAY(SELECT a.id FROM loracomp.declaration AS a WHERE a.view = ANY (lock_to_alter.names));
BEGIN
    LOOP
        BEGIN
            PERFORM FROM loracomp.declaration AS a WHERE a.id = ANY (ids) ORDER BY a.id FOR UPDATE;
            PERFORM FROM loracomp.answer_row AS r WHERE r.declaration_id = ANY (ids) AND r.example_id IS NOT NULL FOR UPDATE;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > until THEN
                RAISE EXCEPTION 'a transaction that is open has corrected or drawn rows of %', array_to_string(lock_to_alter.names, ', ')
                    USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
            END IF;
        END;
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.lock_to_alter IS
'Locks declarations with their corrections until the transaction ends. Raises if others keep a part of them locked for ten seconds.';

CREATE FUNCTION loracomp.with_other_source(d loracomp.declaration, prompt text, filter jsonb)
RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    checked loracomp.declaration;
BEGIN
    IF num_nonnulls(with_other_source.prompt, with_other_source.filter) > 0 THEN
        checked := loracomp.check_source(
            d.source, coalesce(with_other_source.prompt, d.prompt), coalesce(with_other_source.filter, d.filter)
        );
        d.prompt := checked.prompt;
        d.filter := checked.filter;
        d.columns := checked.columns;
        d.names := checked.names;
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.with_other_source IS 'A declaration with another prompt or filter, which is checked; null leaves it as it is.';

-- The view must not be in use while it is replaced. Other readers wait behind this call.
CREATE FUNCTION loracomp.replace_view(d loracomp.declaration) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '2s'
AS $$
BEGIN
    PERFORM loracomp.make_view(d, n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = d.view;
    UPDATE loracomp.declaration AS a SET view_definition = loracomp.view_definition(a.view, a.source) WHERE a.id = d.id;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'a transaction that is open has read view %, which another filter replaces', d.view
        USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
END
$$;
COMMENT ON FUNCTION loracomp.replace_view IS 'Replaces the definition of a declaration''s view. Raises if it must wait for a reader for two seconds.';

-- Null leaves a setting as it is, except that choices replace a length and a length replaces choices, because a job has only one of them. Rows
-- whose prompt, choices, descriptions or length change are asked again, and rows that no longer pass the filter lose their answers. Policy,
-- priority and tags apply to jobs that are made from now on. If `certain` is 0, nothing is promised any more. Only the table's owner may change the
-- prompt or the filter. Open transactions may have changed a column that is new in them without a hint: the scan waits for these (scan_after).
CREATE FUNCTION loracomp.alter_answers(
    name regclass,
    prompt text DEFAULT NULL,
    choices text[] DEFAULT NULL,
    descriptions text[] DEFAULT NULL,
    max_new_tokens integer DEFAULT NULL,
    policy text DEFAULT NULL,
    priority integer DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    filter jsonb DEFAULT NULL,
    paused boolean DEFAULT NULL,
    again boolean DEFAULT FALSE,
    certain double precision DEFAULT NULL,
    certain_of text[] DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before loracomp.declaration;
    d loracomp.declaration;
    is_another boolean;
BEGIN
    PERFORM loracomp.find_declaration(alter_answers.name);
    IF num_nonnulls(alter_answers.prompt, alter_answers.choices, alter_answers.descriptions, alter_answers.max_new_tokens) > 0 THEN
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'a transaction with isolation level % can''t see the corrections that others have just made',
                current_setting('transaction_isolation')
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'change the declaration with isolation level read committed';
        END IF;
        PERFORM loracomp.lock_to_alter(ARRAY[alter_answers.name]);
    END IF;
    before := loracomp.with_current_names(loracomp.lock_declaration(alter_answers.name));
    d := loracomp.with_other_source(before, alter_answers.prompt, alter_answers.filter);
    IF alter_answers.descriptions IS NULL AND alter_answers.choices <> d.choices AND d.descriptions IS NOT NULL THEN
        RAISE EXCEPTION 'descriptions must be given with other choices, because the present ones describe the present choices'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'descriptions => ''{}'' leaves the choices without descriptions';
    END IF;
    IF num_nonnulls(alter_answers.choices, alter_answers.max_new_tokens) > 0 THEN
        d.choices := alter_answers.choices;
        d.max_new_tokens := alter_answers.max_new_tokens;
    END IF;
    d.descriptions := nullif(coalesce(alter_answers.descriptions, CASE WHEN d.choices IS NOT NULL THEN d.descriptions END), '{}');
    d.policy := coalesce(alter_answers.policy, d.policy);
    d.priority := coalesce(alter_answers.priority, d.priority);
    d.tags := coalesce(alter_answers.tags, d.tags);
    d.certain := nullif(coalesce(alter_answers.certain, d.certain), 0);
    d.certain_of := nullif(coalesce(alter_answers.certain_of, CASE WHEN d.certain IS NOT NULL THEN d.certain_of END), '{}');
    PERFORM loracomp.check_certain(d);
    PERFORM loracomp.check_request(d);
    UPDATE loracomp.declaration AS a SET
        prompt = d.prompt, filter = d.filter, columns = d.columns, names = d.names, choices = d.choices,
        descriptions = d.descriptions, max_new_tokens = d.max_new_tokens, policy = d.policy, priority = d.priority, tags = d.tags,
        certain = d.certain, certain_of = d.certain_of, scan_after = CASE WHEN d.columns <@ before.columns THEN a.scan_after ELSE 0 END,
        paused = coalesce(alter_answers.paused, a.paused), round = a.round + coalesce(alter_answers.again, FALSE)::integer,
        backfill = a.backfill OR coalesce(alter_answers.again, FALSE), trouble = NULL, retry_at = '-infinity'
    WHERE a.id = d.id;
    IF alter_answers.filter IS NOT NULL THEN
        PERFORM loracomp.replace_view(d);
    END IF;
    IF alter_answers.again OR num_nonnulls(
        alter_answers.prompt, alter_answers.choices, alter_answers.descriptions, alter_answers.max_new_tokens, alter_answers.filter
    ) > 0
    THEN
        PERFORM loracomp.begin_scan(d.id);
    END IF;
    IF alter_answers.prompt IS NOT NULL OR d.choices IS DISTINCT FROM before.choices THEN
        PERFORM loracomp.label_again(before, d);
    END IF;
    is_another := (d.prompt, loracomp.prompt_columns(d), d.choices, d.descriptions, d.max_new_tokens) IS DISTINCT FROM
        (before.prompt, loracomp.prompt_columns(before), before.choices, before.descriptions, before.max_new_tokens);
    IF is_another OR alter_answers.again THEN
        UPDATE loracomp.declaration AS a SET stale_to_job = (SELECT s.last_value FROM loracomp.job_id_seq AS s) WHERE a.id = d.id;
    END IF;
    -- Not if what is asked has changed, because the answers without corrections to the new prompt are counted in `before`.
    IF alter_answers.again AND NOT is_another THEN
        UPDATE loracomp.declaration AS a SET waits_until = now() + interval '10 minutes' WHERE a.id = d.id;
    END IF;
    IF is_another THEN
        UPDATE loracomp.answer_row AS r SET first_answer = loracomp.first_answer_of(d, r, r.example_id)
        WHERE r.declaration_id = d.id AND r.example_id IS NOT NULL;
    END IF;
    PERFORM loracomp.notify('loracomp_keep', '');
END
$$;
COMMENT ON FUNCTION loracomp.alter_answers IS
'Changes a declaration; null leaves a setting as it is. Choices replace max_new_tokens, and the other way round. With `again`, all rows are '
'answered again, but new rows come first.';

-- Reads only.
CREATE FUNCTION loracomp.unfinished_jobs(d loracomp.declaration) RETURNS bigint[]
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT ARRAY(
        SELECT j.id FROM loracomp.answer_row AS r JOIN loracomp.job AS j ON j.id = r.job_id AND j.finished_at IS NULL
        WHERE r.declaration_id = d.id
        UNION ALL
        SELECT j.id FROM loracomp.example AS e
        JOIN loracomp.job AS j ON j.kind = 'measure' AND j.example_id = e.id AND j.finished_at IS NULL
        WHERE e.task_id = d.task_id
    );
$$;
COMMENT ON FUNCTION loracomp.unfinished_jobs IS 'The jobs of a declaration''s rows, and of its corrections, that are queued or running.';

-- The jobs are deleted, because a row whose job is gone without an outcome waits, and gets a new job from the next scan.
CREATE FUNCTION loracomp.cancel_answers(name regclass) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.lock_declaration(cancel_answers.name);
    unfinished CONSTANT bigint[] := loracomp.unfinished_jobs(d);
BEGIN
    UPDATE loracomp.declaration AS a SET paused = TRUE WHERE a.id = d.id;
    IF unfinished <> '{}' THEN
        PERFORM loracomp.begin_scan(d.id), loracomp.notify('loracomp_job', 'cancelled');
        PERFORM loracomp.delete_jobs(unfinished, 'cancel_answers');
    END IF;
    RETURN cardinality(unfinished);
END
$$;
COMMENT ON FUNCTION loracomp.cancel_answers IS
'Pauses a declaration and deletes its queued and running jobs; returns how many. Their rows wait until alter_answers resumes it.';

CREATE FUNCTION loracomp.drop_answers(name regclass) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    d loracomp.declaration := loracomp.find_declaration(drop_answers.name);
BEGIN
    PERFORM loracomp.lock_to_alter(ARRAY[drop_answers.name]);
    d := loracomp.find_declaration(drop_answers.name);
    BEGIN
        PERFORM loracomp.forget_answers(d, locks => TRUE);
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        RAISE EXCEPTION 'a transaction that is open has read or written table % or its view, or has drawn rows', d.source
            USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; pg_stat_activity shows who has one open';
    END;
END
$$;
COMMENT ON FUNCTION loracomp.drop_answers IS 'Drops a declaration with its view and its answers; its waiting jobs are erased.';

-- It works even if the table or the view is gone. An adapter that was trained on the corrections is retired, but kept for replay. The table is locked
-- last, because deleting the rows may take long, and may have to wait for others. Whoever writes until then may add hints, so these are deleted again.
CREATE FUNCTION loracomp.forget_answers(d loracomp.declaration, locks boolean DEFAULT FALSE) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    unfinished CONSTANT bigint[] := loracomp.unfinished_jobs(d);
BEGIN
    DELETE FROM loracomp.declaration AS a WHERE a.id = d.id;
    PERFORM loracomp.forget_examples(ARRAY(SELECT e.id FROM loracomp.example AS e WHERE e.task_id = d.task_id));
    DELETE FROM loracomp.withdrawn_example AS w WHERE w.declaration_id = d.id;
    DELETE FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id;
    PERFORM loracomp.delete_jobs(unfinished);
    UPDATE loracomp.adapter AS a SET status = 'retired', retired_at = now() WHERE a.task_id = d.task_id AND a.status <> 'retired';
    DELETE FROM loracomp.task AS t
    WHERE t.id = d.task_id AND NOT EXISTS (SELECT FROM loracomp.adapter AS a WHERE a.task_id = t.id);
    PERFORM loracomp.drop_parts(d, forget_answers.locks);
    DELETE FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id;
    DELETE FROM loracomp.scan_request AS q WHERE q.declaration_id = d.id;
END
$$;
COMMENT ON FUNCTION loracomp.forget_answers IS 'Removes a declaration with its view, triggers, answers, corrections and waiting jobs.';
