-- The refresh of the materialized views above.
--   refresh_reports             works out those that are older than asked, and notes when
--     check_range
--   report_refresh              how old each is

-- What was made just now is as of now; refresh_reports() refreshes what stands here.
DELETE FROM loracomp.report_refresh;
INSERT INTO loracomp.report_refresh (report)
SELECT m.matviewname FROM pg_matviews AS m WHERE m.schemaname = 'loracomp';

-- Reads jobs and predictions, and replaces what reports hold without shutting out who reads them. Whoever comes while
-- another refreshes does nothing. It holds one snapshot for all: call it when that may last a while.
CREATE FUNCTION loracomp.refresh_reports(older_than interval DEFAULT '0')
RETURNS TABLE (report text, refreshed_at timestamptz, seconds double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    -- In seconds: 100 years.
    PERFORM loracomp.check_range('older_than', extract(EPOCH FROM refresh_reports.older_than), 0, 3.2e9);
    -- As an installer does, who waits for this and would else meet it in a deadlock.
    LOCK TABLE loracomp.job IN ACCESS SHARE MODE;
    FOR report IN
        SELECT r.report FROM loracomp.report_refresh AS r
        WHERE r.refreshed_at <= now() - refresh_reports.older_than
        ORDER BY r.report
        FOR UPDATE SKIP LOCKED
    LOOP
        refreshed_at := clock_timestamp();
        EXECUTE format('REFRESH MATERIALIZED VIEW CONCURRENTLY loracomp.%I', report);
        -- Plans of joins with it rest on its size; nobody else would tell before autovacuum does.
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
'Refreshes the reports whose numbers are older than this and returns a row for each. Reports can be read meanwhile.';

-- Reads only, with its owner's rights.
CREATE VIEW bi.report_refresh AS
SELECT
    r.report,
    r.refreshed_at,
    loracomp.seconds_between(r.refreshed_at, now()) AS age_s,
    r.seconds
FROM loracomp.report_refresh AS r;
COMMENT ON VIEW bi.report_refresh IS
'How old the refreshed views are: routing_drift rests on routing_by_day, the others on what has their name.';
COMMENT ON COLUMN bi.report_refresh.report IS 'Name of the refreshed view.';
COMMENT ON COLUMN bi.report_refresh.age_s IS 'Seconds since then.';
