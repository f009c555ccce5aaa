-- drop: DROP FUNCTION IF EXISTS loracomp.check_objects()
-- Reads only: whether what sql/ made is still there.
CREATE FUNCTION loracomp.check_objects()
RETURNS TABLE ("check" text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'functions and views', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'fail' END,
        coalesce('missing: ' || string_agg(m.object, ', ' ORDER BY m.object) || '; run `loracomp init --again`',
            'all are there')
    FROM (
        SELECT DISTINCT substring(d.statement FROM 'EXISTS ([a-z_.]+)') AS object, d.statement ~ '^DROP FUNCTION' AS is_function
        FROM sql_object AS o CROSS JOIN LATERAL unnest(o.drops) AS d (statement)
        WHERE d.statement ~ '^DROP (FUNCTION|VIEW|MATERIALIZED VIEW) '
    ) AS m
    WHERE CASE
        WHEN m.is_function THEN NOT EXISTS (
            SELECT FROM pg_proc AS p
            WHERE p.pronamespace = to_regnamespace(split_part(m.object, '.', 1))
                AND p.proname = split_part(m.object, '.', 2)
        )
        ELSE to_regclass(m.object) IS NULL
    END
$$;
COMMENT ON FUNCTION loracomp.check_objects IS 'Whether all functions and views of the release are there.';
