-- Computes the reports by day (files 30 to 37), and computes them again for days whose jobs have changed.
--   refresh_reports             all reports, if they are older than a given age
--     check_range
--     changed_days, roll_up
--   close_days                  for the last time, before purge_jobs deletes the days' jobs
--     changed_days              days whose jobs have changed since the reports were computed
--     roll_up                   computes and stores all reports for these days
--       reports                 names of the reports
--   bi.report_refresh           when the reports were last computed
-- Only one session at a time does this; others wait for the lock on report_day.

-- Reads only. It compares the number of jobs that ended on a day, and the sum of their times, with those of the last
-- computation. This also finds jobs that were erased, deleted by hand, retried, or committed late, although the queue
-- does not record such changes. The count needs only the index job_finished, from the first day that is not closed.
-- After a policy, a task or a base model is renamed or deleted, all days that are not closed are returned, because jobs
-- show the new name, or none. Closed days keep the old names. Tasks of declarations are ignored here, because any
-- submitter can drop a declaration, and its task with it, at any time.
CREATE FUNCTION loracomp.changed_days(before date) RETURNS SETOF loracomp.report_day
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    coalesce(j.day, d.day) AS day,
    coalesce(j.jobs, 0) AS jobs,
    coalesce(j.times, '0') AS times,
    FALSE AS is_closed,
    r.renames
FROM (
    SELECT
        (e.finished_at AT TIME ZONE 'UTC')::date AS day,
        count(*) AS jobs,
        sum((e.finished_at AT TIME ZONE 'UTC')::time) AS times
    FROM loracomp.job AS e
    WHERE e.finished_at < changed_days.before::timestamp AT TIME ZONE 'UTC'
        -- All days before a closed day are closed too, because purge_jobs closes the oldest days first.
        AND e.finished_at >= (
            SELECT coalesce(max(c.day) + 1, '-infinity')::timestamp AT TIME ZONE 'UTC'
            FROM loracomp.report_day AS c WHERE c.is_closed
        )
    GROUP BY (e.finished_at AT TIME ZONE 'UTC')::date
) AS j
FULL JOIN (
    SELECT o.* FROM loracomp.report_day AS o WHERE NOT o.is_closed AND o.day < changed_days.before
) AS d ON j.day = d.day
CROSS JOIN (
    SELECT count(*) AS renames FROM loracomp.audit_event AS e
    WHERE e.entity IN ('policy', 'task', 'base_model') AND e.action <> 'insert'
        AND e.before ->> 'name' IS DISTINCT FROM e.after ->> 'name' AND NOT starts_with(e.before ->> 'name', 'answers/')
) AS r
WHERE d.jobs IS DISTINCT FROM coalesce(j.jobs, 0) OR d.times IS DISTINCT FROM coalesce(j.times, '0')
    OR d.renames IS DISTINCT FROM r.renames;
END;
COMMENT ON FUNCTION loracomp.changed_days IS
'Days before the given one that are not closed and whose reports must be computed again, because their jobs have changed or a policy, a '
'task or a base model was renamed or deleted.';

CREATE FUNCTION loracomp.reports() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{accuracy_by_day, adapter_usage_by_day, answers_by_tag, jobs_by_day, latency_by_day, routing_by_day}'::text[];
COMMENT ON FUNCTION loracomp.reports IS 'Names of the tables with rows by day.';

-- The day is a constant in the statement's text, so that the planner can estimate how many jobs it has. All reports of a day are computed
-- one after another, because they read the same jobs, which are then still in memory.
CREATE FUNCTION loracomp.roll_up(days loracomp.report_day[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    of_day loracomp.report_day;
    report text;
BEGIN
    FOREACH of_day IN ARRAY days LOOP
        FOREACH report IN ARRAY loracomp.reports() LOOP
            EXECUTE format('DELETE FROM loracomp.%I WHERE day = %L', report, of_day.day);
            EXECUTE format('INSERT INTO loracomp.%I SELECT * FROM loracomp.%I(%L)', report, report || '_on', of_day.day);
        END LOOP;
    END LOOP;
    INSERT INTO loracomp.report_day (day, jobs, times, renames)
    SELECT d.day, d.jobs, d.times, d.renames FROM unnest(days) AS d
    ON CONFLICT ON CONSTRAINT report_day_pkey
    DO UPDATE SET jobs = excluded.jobs, times = excluded.times, renames = excluded.renames;
END
$$;
COMMENT ON FUNCTION loracomp.roll_up IS
'Computes the rows of all reports for these days, and stores from how many jobs they were computed.';

-- Closes all days before the given one. The caller has locked report_day.
CREATE FUNCTION loracomp.close_days(before date) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    SELECT loracomp.roll_up(ARRAY(SELECT c FROM loracomp.changed_days(close_days.before) AS c));
    UPDATE loracomp.report_day AS d SET is_closed = TRUE WHERE d.day < close_days.before AND NOT d.is_closed;
$$;
COMMENT ON FUNCTION loracomp.close_days IS
'Computes the reports again for all days before the given one whose jobs have changed, then closes these days. After that, changes to '
'their jobs no longer change the reports.';

-- Replaces the rows of days that have changed; readers do not wait. If another session is refreshing, it does nothing. The call holds one
-- snapshot until it ends, which keeps vacuum from removing dead tuples, so call it when a long snapshot is acceptable.
CREATE FUNCTION loracomp.refresh_reports(older_than interval DEFAULT '0')
RETURNS TABLE (refreshed_at timestamptz, seconds double precision, days integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    began timestamptz;
    changed loracomp.report_day[];
    report text;
BEGIN
    -- 100 years in seconds.
    PERFORM loracomp.check_range('older_than', extract(EPOCH FROM refresh_reports.older_than), 0, 3.2e9);
    -- Take the same locks as an installer, in the same order, so that the two wait for each other instead of deadlocking.
    LOCK TABLE loracomp.job IN ACCESS SHARE MODE;
    -- A time that is still to come was written before the server's clock went back.
    PERFORM FROM loracomp.report_refresh AS r
    WHERE r.refreshed_at <= now() - refresh_reports.older_than OR r.refreshed_at > clock_timestamp()
    FOR UPDATE SKIP LOCKED;
    IF NOT found THEN
        RETURN;
    END IF;
    LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE;
    -- Jobs that end from now on may be missing from the reports; the next refresh finds them.
    began := clock_timestamp();
    changed := ARRAY(SELECT c FROM loracomp.changed_days('infinity') AS c);
    PERFORM loracomp.roll_up(changed);
    IF cardinality(changed) > 2 THEN
        -- Update statistics, because plans of joins depend on them and autovacuum would update them much later.
        FOREACH report IN ARRAY loracomp.reports() LOOP
            EXECUTE format('ANALYZE loracomp.%I', report);
        END LOOP;
    END IF;
    UPDATE loracomp.report_refresh AS r
    SET refreshed_at = began, seconds = round(extract(EPOCH FROM clock_timestamp() - began), 3);
    RETURN QUERY SELECT r.refreshed_at, r.seconds, cardinality(changed) FROM loracomp.report_refresh AS r;
END
$$;
COMMENT ON FUNCTION loracomp.refresh_reports IS
'Computes the reports again for days whose jobs have changed. Does nothing and returns no row if the reports are younger than the given '
'age; otherwise returns the number of days and the seconds that it took. Reports can be read meanwhile.';

-- A new release may count differently, so the first refresh after an upgrade computes all days again that are not closed. The upgrade
-- itself does not compute them, because workers and clients wait for it.
UPDATE loracomp.report_day SET jobs = NULL WHERE NOT is_closed;
SELECT r.days FROM loracomp.refresh_reports() AS r
WHERE NOT EXISTS (SELECT FROM loracomp.job AS j WHERE j.finished_at IS NOT NULL);

-- Reads only, with its owner's rights.
CREATE VIEW bi.report_refresh AS
SELECT
    r.refreshed_at,
    loracomp.seconds_between(r.refreshed_at, now()) AS age_s,
    r.seconds
FROM loracomp.report_refresh AS r;
COMMENT ON VIEW bi.report_refresh IS 'One row: when refresh_reports last computed the reports by day.';
COMMENT ON COLUMN bi.report_refresh.age_s IS 'Seconds since the last refresh.';
SELECT loracomp.copy_comments('bi.report_refresh', 'loracomp.report_refresh');

CREATE TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON loracomp.reported_tag
FOR EACH ROW EXECUTE FUNCTION loracomp.audit_row();
