-- Refreshes all materialized views of schema loracomp (files 30 to 37).
--   refresh_reports             refreshes the views that are older than a given age, and stores when
--     check_range
--   report_refresh              the age of each view

-- The views were created just now, so their data is as of now. refresh_reports() refreshes the views listed here.
DELETE FROM loracomp.report_refresh;
INSERT INTO loracomp.report_refresh (report)
SELECT m.matviewname FROM pg_matviews AS m WHERE m.schemaname = 'loracomp';

-- Reads jobs and predictions, and refreshes the views concurrently, so that they can be read meanwhile. If another session is
-- refreshing, it does nothing. One snapshot is open during the whole call: call it when a long snapshot is acceptable.
CREATE FUNCTION loracomp.refresh_reports(older_than interval DEFAULT '0')
RETURNS TABLE (report text, refreshed_at timestamptz, seconds double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- 100 years in seconds.
    PERFORM loracomp.check_range('older_than', extract(EPOCH FROM refresh_reports.older_than), 0, 3.2e9);
    -- The same lock as an installer's, in the same order, so that the two wait for each other and do not deadlock.
    LOCK TABLE loracomp.job IN ACCESS SHARE MODE;
    FOR report IN
        SELECT r.report FROM loracomp.report_refresh AS r
        WHERE r.refreshed_at <= now() - refresh_reports.older_than
        ORDER BY r.report
        FOR UPDATE SKIP LOCKED
    LOOP
        refreshed_at := clock_timestamp();
        EXECUTE format('REFRESH MATERIALIZED VIEW CONCURRENTLY loracomp.%I', report);
        -- Update statistics, because plans of joins depend on the view's size, and autovacuum would do it much later.
        EXECUTE format('ANALYZE loracomp.%I', report);
        seconds := loracomp.seconds_between(refreshed_at, clock_timestamp());
        UPDATE loracomp.report_refresh AS r
        SET refreshed_at = refresh_reports.refreshed_at, seconds = refresh_reports.seconds
        WHERE r.report = refresh_reports.report;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.refresh_reports IS
'Refreshes the reports that are older than the given age, and returns a row for each. Reports can be read meanwhile.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.report_refresh AS
SELECT
    r.report,
    r.refreshed_at,
    loracomp.seconds_between(r.refreshed_at, now()) AS age_s,
    r.seconds
FROM loracomp.report_refresh AS r;
COMMENT ON VIEW bi.report_refresh IS
'Age of each view that refresh_reports refreshes. routing_drift has no row of its own: its age is that of routing_by_day.';
COMMENT ON COLUMN bi.report_refresh.age_s IS 'Seconds since the last refresh.';
