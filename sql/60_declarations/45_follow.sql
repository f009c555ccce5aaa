-- Checks what has happened to a declared table since the last call: renamed, dropped, given away, restored.
--   follow_source       called before rows are asked
--     forget_some       removes a declaration whose table or view was dropped
--     check_same_owner, with_all_columns     15_source.sql
--     check_owner, check_text, check_parent, check_enum_values  28_check.sql
--     lock_code         25_code.sql

-- If a table or a column is renamed, its answers stay. After a dump and restore, columns may have other numbers, and rows have other transaction
-- ids. There may be millions of answers, so each call rewrites the ids of only some of them.
CREATE FUNCTION loracomp.follow_source(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    before CONSTANT loracomp.declaration := d;
    owner CONSTANT name := (
        SELECT pg_get_userbyid(s.relowner) FROM pg_class AS s JOIN pg_class AS v ON v.oid = d.view WHERE s.oid = d.source
    );
BEGIN
    IF owner IS NULL THEN
        RETURN loracomp.forget_some(d);
    END IF;
    PERFORM loracomp.check_same_owner(d);
    -- What asks for a scan afterwards comes before lock_code, which fails while the table is being vacuumed.
    PERFORM loracomp.check_owner(owner), loracomp.check_parent(d.source), loracomp.lock_code(d.source, waits => FALSE);
    d := loracomp.with_all_columns(d);
    PERFORM loracomp.check_text(d.source, d.columns), loracomp.check_enum_values(d.source, d.filter);
    IF loracomp.primary_key_of(d.source) <> d.key_columns THEN
        RAISE EXCEPTION 'table % no longer has the primary key (%): add it again, or drop this declaration and make another',
            d.names[1], array_to_string(d.names[cardinality(d.columns) + 2 :], ', ');
    END IF;
    IF d.source_identity <> loracomp.identity_of(d.source) THEN
        UPDATE loracomp.answer_row AS r SET changed_in = 0
        WHERE r.ctid = ANY (ARRAY(
            SELECT o.ctid FROM loracomp.answer_row AS o WHERE o.declaration_id = d.id AND o.changed_in > 0 LIMIT 2000
        ));
        IF found THEN
            RETURN NULL;
        END IF;
        UPDATE loracomp.scan_request AS q SET not_before = 0 WHERE q.declaration_id = d.id;
        -- pg_dump reads sequences later than tables, so take_answers may have handled notes meanwhile that the dump still has.
        PERFORM setval('loracomp.ended_jobs_from', 0);
        d.source_identity := loracomp.identity_of(d.source);
        d.hints_from := 0;
        d.scan_after := NULL;
    END IF;
    IF d <> before THEN
        UPDATE loracomp.declaration AS a SET
            source_identity = d.source_identity, columns = d.columns, key_columns = d.key_columns, names = d.names, prompt = d.prompt,
            filter = d.filter, hints_from = d.hints_from, scan_after = d.scan_after
        WHERE a.id = d.id;
    END IF;
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.follow_source IS
'The declaration with its table''s current names; null if the table or the view is gone, or if the next call must go on. Raises if the '
'table must not be read.';

-- Each call deletes at most 2,000 answers and 20,000 hints, because there may be millions. Returns null.
CREATE FUNCTION loracomp.forget_some(d loracomp.declaration) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    answers CONSTANT integer := 2000;
    hints CONSTANT integer := 20000;
    jobs bigint[];
    deleted integer;
    users text;
BEGIN
    WITH gone AS (
        DELETE FROM loracomp.answer_row AS r
        WHERE r.ctid = ANY (ARRAY(
            SELECT o.ctid FROM loracomp.answer_row AS o WHERE o.declaration_id = d.id LIMIT answers FOR UPDATE SKIP LOCKED
        ))
        RETURNING r.job_id
    )
    SELECT array_agg(g.job_id) INTO jobs FROM gone AS g;
    PERFORM loracomp.delete_jobs(ARRAY(SELECT j.id FROM loracomp.job AS j WHERE j.id = ANY (jobs) AND j.finished_at IS NULL));
    DELETE FROM loracomp.answer_hint AS h
    WHERE h.ctid = ANY (ARRAY(SELECT o.ctid FROM loracomp.answer_hint AS o WHERE o.declaration_id = d.id LIMIT hints));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    IF deleted < hints AND (cardinality(jobs) = answers) IS NOT TRUE THEN
        PERFORM loracomp.forget_answers(d);
    END IF;
    RETURN NULL;
EXCEPTION WHEN dependent_objects_still_exist THEN -- pg_restore --clean of the user's schema alone made its view again
    GET STACKED DIAGNOSTICS users = PG_EXCEPTION_DETAIL;
    RAISE EXCEPTION 'the table or view of this declaration was dropped, but %: drop that, then declare again', users;
END
$$;
COMMENT ON FUNCTION loracomp.forget_some IS 'Deletes answers of a declaration whose table or view is gone; the last call deletes the declaration too.';
