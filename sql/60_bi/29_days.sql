-- The days of reports. Each report is a table with rows by day and a function <report>_on(day) that computes a day's rows from its
-- jobs (files 30 to 37); 50_refresh_reports.sql stores them. The day of a job and of its answer is the day on which it ended, in UTC.
--   jobs_on                     jobs that ended on a day
--   trigger recount_days        a tag that is new to the reports, or a new name: all days are computed again
--   trigger recount_deleted     so they are if a task is gone that reports name

-- Reads only. The bounds are times, so that the index job_finished is used. It has no SET clause, so that Postgres can insert its
-- query into that of the caller.
CREATE FUNCTION loracomp.jobs_on(day date) RETURNS SETOF loracomp.job
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT j.*
FROM loracomp.job AS j
WHERE j.finished_at >= jobs_on.day::timestamp AT TIME ZONE 'UTC'
    AND j.finished_at < (jobs_on.day + 1)::timestamp AT TIME ZONE 'UTC';
END;
COMMENT ON FUNCTION loracomp.jobs_on IS 'Jobs that ended on a day in UTC.';

-- The new name of a policy or a task is that of its jobs too. Closed days keep the old name, and don't count the new tag.
-- A task is also deleted when a submitter drops a declaration or a worker finds its table gone. These must not wait for a session that has
-- locked report_day, so they touch it only in the rare case that a report names the task.
CREATE FUNCTION loracomp.recount_days() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF tg_op = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM loracomp.accuracy_by_day AS a WHERE a.own_task IN (SELECT g.name FROM gone AS g)) THEN
            RETURN NULL;
        END IF;
    END IF;
    UPDATE loracomp.report_day SET jobs = NULL WHERE NOT is_closed;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.recount_days IS
'Trigger: has the next refresh compute the reports again for all days that are not closed.';

CREATE TRIGGER recount_days AFTER INSERT ON loracomp.reported_tag
FOR EACH ROW EXECUTE FUNCTION loracomp.recount_days();

-- A statement's trigger, and before it changes a row, because it waits for a refresh that is running: meanwhile the policy must not be
-- locked, or no job could be inserted.
CREATE TRIGGER recount_days BEFORE UPDATE OF name ON loracomp.policy
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.recount_days();

CREATE TRIGGER recount_days BEFORE UPDATE OF name ON loracomp.task
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.recount_days();

CREATE TRIGGER recount_deleted AFTER DELETE ON loracomp.task REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.recount_days();
