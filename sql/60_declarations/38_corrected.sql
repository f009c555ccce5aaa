-- Corrected rows are asked again once corrections are used for answering, so that people see how much the corrections help.
--   ask_corrected
--     must_ask_corrected
--       corrections_answer    true from sixteen measured corrections on, until the declaration has an adapter of its own

-- Reads only. The declaration's own adapter was activated because it was measured to be better than the corrections alone, but the policy
-- `measured` would weigh it like any other adapter. So with such an adapter the declaration's own policy is used.
CREATE FUNCTION loracomp.corrections_answer(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT count(*) = 16 AND NOT EXISTS (
        SELECT FROM loracomp.adapter AS a JOIN loracomp.base_model AS b ON b.id = a.base_model_id AND b.is_default
        WHERE a.task_id = d.task_id AND a.status = 'active'
    )
    FROM (
        SELECT FROM loracomp.measurement AS m JOIN loracomp.base_model AS b ON b.id = m.base_model_id AND b.is_default
        WHERE m.task_id = d.task_id LIMIT 16
    ) AS m;
$$;
COMMENT ON FUNCTION loracomp.corrections_answer IS
'Whether a declaration''s next jobs have the policy measured, because sixteen of its corrections are measured.';

-- Reads only.
CREATE FUNCTION loracomp.must_ask_corrected(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM loracomp.answer_row AS r
        WHERE r.declaration_id = (d).id AND r.example_id IS NOT NULL AND r.job_id IS NOT NULL AND NOT r.uses_corrections
    ) AND loracomp.corrections_answer(d);
END;
COMMENT ON FUNCTION loracomp.must_ask_corrected IS 'Whether corrected rows of a declaration must be answered again, because corrections are used for answering now.';

-- Each corrected row is answered without its own label, so its new answer shows how much the other corrections help.
CREATE FUNCTION loracomp.ask_corrected(d loracomp.declaration) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    corrected jsonb;
BEGIN
    IF d.scan_after IS NOT NULL OR NOT loracomp.must_ask_corrected(d) THEN
        RETURN 0;
    END IF;
    SELECT coalesce(jsonb_agg(jsonb_build_object('key', c.key)), '[]') INTO corrected
    FROM (
        SELECT r.key FROM loracomp.answer_row AS r
        WHERE r.declaration_id = d.id AND r.example_id IS NOT NULL AND r.job_id IS NOT NULL AND NOT r.uses_corrections
        LIMIT 200 FOR UPDATE SKIP LOCKED
    ) AS c;
    RETURN (loracomp.ask_page(d, loracomp.read_rows(d, corrected), is_scan => FALSE)).handled;
END
$$;
COMMENT ON FUNCTION loracomp.ask_corrected IS 'Makes new jobs of corrected rows once corrections are used for answering, and returns how many rows it has handled.';
