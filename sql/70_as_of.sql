-- Says of the column as_of of each view of bi how old its numbers are: a view that reads it from report_refresh shows what
-- refresh_reports computed, and all others are live. This file comes after those of the views.
DO $$
DECLARE
    view record;
BEGIN
    FOR view IN
        SELECT a.attrelid::regclass AS name, pg_get_viewdef(a.attrelid) LIKE '%.report = %' AS is_report
        FROM pg_catalog.pg_class AS c
        INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'as_of'
        WHERE c.relnamespace = 'bi'::regnamespace AND c.relkind = 'v'
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.as_of IS %L', view.name, CASE
            WHEN view.is_report THEN 'When these numbers were computed last; later answers are not counted yet.'
            ELSE 'Time of the data: the time of the query, because the view is live.'
        END);
    END LOOP;
END
$$;
