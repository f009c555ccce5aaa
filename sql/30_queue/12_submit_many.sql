-- Submission of many jobs at once. Everything here runs with the caller's rights.
--   submit_jobs                 inserts the valid jobs, and returns for each refused job why it was refused
--     submit_one
--       insert_job
--       constraint_in_words

-- Reads nothing.
CREATE FUNCTION loracomp.constraint_in_words(name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    words text := replace(name, '_', ' ');
    field text;
BEGIN
    FOREACH field IN ARRAY loracomp.submitter_columns() LOOP
        words := replace(words, replace(field, '_', ' '), field);
    END LOOP;
    RETURN words;
END
$$;
COMMENT ON FUNCTION loracomp.constraint_in_words IS
'The name of a constraint of loracomp.job as a sentence, such as: top_p must be between 0.0001 and 1.';

-- Inserts one job, or finds the existing one if its idempotency key was used before. If the job is refused, it returns the reason
-- instead of raising.
CREATE FUNCTION loracomp.submit_one(given jsonb, OUT job_id bigint, OUT refused text)
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    hint text;
    rule text;
    field text;
    content jsonb;
BEGIN
    job_id := loracomp.insert_job(given);
EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
    GET STACKED DIAGNOSTICS refused = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT, rule = CONSTRAINT_NAME, field = COLUMN_NAME;
    IF refused ~ '^(new row|insert or update) ' THEN
        refused := loracomp.constraint_in_words(rule);
    ELSIF sqlstate = '23502' AND field <> '' THEN
        refused := field || ' must be given';
    ELSIF sqlstate LIKE '22%' AND sqlstate <> '22023' THEN
        -- A value does not have its column's type. Postgres does not say which value, so look for it.
        FOR field, content IN SELECT g.key, g.value FROM jsonb_each(given) AS g LOOP
            BEGIN
                PERFORM jsonb_populate_record(NULL::loracomp.job, jsonb_build_object(field, content));
            EXCEPTION WHEN data_exception THEN
                refused := field || ': ' || sqlerrm;
            END;
        END LOOP;
    END IF;
    refused := concat_ws('; ', refused, nullif(hint, ''));
END
$$;
COMMENT ON FUNCTION loracomp.submit_one IS 'Inserts one job; returns its id, or the reason why it was refused. For submit_jobs.';

-- Each row is tried in a subtransaction of its own. The limits of the queue refuse all rows.
-- In lax mode, a path treats a value that is not an array as an array of one element.
CREATE FUNCTION loracomp.submit_jobs(jobs jsonb) RETURNS TABLE (ordinal bigint, job_id bigint, refused text)
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    PERFORM FROM loracomp.job LIMIT 0; -- as in submit_job
    RETURN QUERY
    SELECT j.ordinal, o.job_id, o.refused
    FROM jsonb_path_query(submit_jobs.jobs, 'lax $[*]') WITH ORDINALITY AS j (given, ordinal)
    CROSS JOIN LATERAL loracomp.submit_one(j.given) AS o;
END
$$;
COMMENT ON FUNCTION loracomp.submit_jobs IS
'Inserts the jobs of a JSON array of objects. Valid jobs are inserted. Returns for each element its position, with the job''s id or '
'with the reason why it was refused.';
