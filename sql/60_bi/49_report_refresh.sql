-- drop: DROP VIEW IF EXISTS bi.report_refresh
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
