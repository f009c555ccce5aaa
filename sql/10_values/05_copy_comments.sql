-- Gives each column of a view that has no comment yet that of the first source's column of the same name. Called where a view passes
-- columns on, after the comments that its file writes. Raises if a source has none to give, so that no call is left over.
CREATE FUNCTION loracomp.copy_comments(view regclass, VARIADIC sources regclass[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    source regclass;
    statements text;
BEGIN
    FOREACH source IN ARRAY sources LOOP
        SELECT string_agg(format('COMMENT ON COLUMN %s.%I IS %L', view, v.attname, d.text), '; ') INTO statements
        FROM pg_attribute AS v
        JOIN pg_attribute AS s ON s.attrelid = source AND s.attname = v.attname AND s.attnum > 0
        CROSS JOIN LATERAL (SELECT col_description(s.attrelid, s.attnum)) AS d (text)
        WHERE v.attrelid = view AND v.attnum > 0 AND col_description(v.attrelid, v.attnum) IS NULL AND d.text IS NOT NULL;
        IF statements IS NULL THEN
            RAISE EXCEPTION '% has no comment for a column of %', source, view USING HINT = 'leave it out of copy_comments';
        END IF;
        EXECUTE statements;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.copy_comments IS 'Copies comments of columns to a view''s columns of the same names.';
