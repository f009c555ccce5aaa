-- drop: DELETE FROM loracomp.report_refresh
-- What was made just now is as of now; refresh_reports() refreshes what stands here.
INSERT INTO loracomp.report_refresh (report)
SELECT m.matviewname FROM pg_matviews AS m WHERE m.schemaname = 'loracomp';
