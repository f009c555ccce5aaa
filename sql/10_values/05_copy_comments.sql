-- Copies comments to the columns of a view that have none yet, each from the column of the same name in the first source that has one. A
-- view's file calls it after it has written its own comments. Raises an error if a source has no comment to copy, so that calls that are no
-- longer needed get noticed.
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
