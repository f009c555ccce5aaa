-- The days of reports. Each report is a table with rows by day and a function <report>_on(day) that computes a day's rows from its
-- jobs (files 30 to 37); 50_refresh_reports.sql stores them. A job and its answer belong to the day on which the job ended, in UTC.
--   jobs_on                     jobs that ended on a day
--   trigger recount_days        makes the next refresh compute all days again when a tag is added

-- Reads only. The bounds are timestamps, so that Postgres uses the index job_finished. The function has no SET clause, so that Postgres can
-- inline it into the caller's query.
CREATE FUNCTION loracomp.jobs_on(day date) RETURNS SETOF loracomp.job
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT j.*
FROM loracomp.job AS j
WHERE j.finished_at >= jobs_on.day::timestamp AT TIME ZONE 'UTC'
    AND j.finished_at < (jobs_on.day + 1)::timestamp AT TIME ZONE 'UTC';
END;
COMMENT ON FUNCTION loracomp.jobs_on IS 'Jobs that ended on a day in UTC.';

-- Closed days are not computed again, so they don't count the new tag.
CREATE FUNCTION loracomp.recount_days() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    UPDATE loracomp.report_day SET jobs = NULL WHERE NOT is_closed;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.recount_days IS 'Trigger: makes the next refresh compute the reports again for all days that are not closed.';

CREATE TRIGGER recount_days AFTER INSERT ON loracomp.reported_tag
FOR EACH ROW EXECUTE FUNCTION loracomp.recount_days();
