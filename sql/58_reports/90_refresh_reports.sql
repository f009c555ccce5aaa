-- drop: DROP FUNCTION IF EXISTS loracomp.refresh_reports(interval)
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
'Works out the reports anew whose numbers are older than this; a row for each. Readers are not locked out meanwhile.';
