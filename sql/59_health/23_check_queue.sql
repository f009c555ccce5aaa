-- drop: DROP FUNCTION IF EXISTS loracomp.check_queue()
-- Reads only: leases that ran out, jobs that nobody takes, workers that are gone, reports that are old.
CREATE FUNCTION loracomp.check_queue()
RETURNS TABLE ("check" text, status text, detail text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT 'leases', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        format('%s ran out and wait for a worker to take them back', count(*))
    FROM job AS j WHERE j.status = 'running' AND j.lease_expires_at < now() - interval '1 minute'
    UNION ALL
    SELECT 'queue', CASE WHEN q.oldest_s < 600 THEN 'ok' ELSE 'warn' END,
        format('%s due, the oldest for %s s', q.jobs, q.oldest_s)
            || CASE WHEN q.oldest_s < 600 THEN '' ELSE ': start more workers' END
    FROM (
        SELECT count(*) AS jobs,
            coalesce(round(extract(EPOCH FROM max(now() - greatest(j.run_at, j.created_at)))), 0) AS oldest_s
        -- Either way, so that each has its index.
        FROM job AS j WHERE j.status = 'queued' AND (j.scheduled OR NOT j.scheduled) AND j.run_at <= now()
    ) AS q
    UNION ALL
    SELECT 'base models without a worker', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(format('%s (due for %s s)', q.base_model, q.oldest_due_s), ', ' ORDER BY q.base_model)
            || ': jobs wait and no worker serves it; start one', 'none that jobs wait for')
    FROM queue_health AS q
    WHERE q.oldest_due_s > 60 AND NOT EXISTS (
        SELECT FROM worker_status AS w
        WHERE w.base_model = q.base_model AND w.status NOT IN ('gone', 'stopped')
    )
    UNION ALL
    SELECT 'workers', CASE WHEN count(*) FILTER (WHERE w.status = 'gone') = 0 THEN 'ok' ELSE 'warn' END,
        format('%s alive', count(*) FILTER (WHERE w.status NOT IN ('gone', 'stopped')))
            || coalesce(', gone without a word: ' || string_agg(w.worker, ', ' ORDER BY w.worker)
                FILTER (WHERE w.status = 'gone') || '; look at their logs', '')
    FROM worker_status AS w
    UNION ALL
    SELECT 'versions of workers', CASE WHEN count(DISTINCT w.code_version) < 2 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(DISTINCT w.code_version, ', '), 'none')
            || CASE WHEN count(DISTINCT w.code_version) < 2 THEN '' ELSE ': start the older ones again' END
    FROM worker_status AS w WHERE w.status NOT IN ('gone', 'stopped')
    UNION ALL
    SELECT 'reports', CASE WHEN count(*) = 0 THEN 'ok' ELSE 'warn' END,
        coalesce(string_agg(format('%s is of %s', r.report, to_char(r.refreshed_at, 'YYYY-MM-DD HH24:MI')), ', '
            ORDER BY r.report) || ': schedule `loracomp refresh`', 'no older than a day, or nothing is newer')
    FROM report_refresh AS r
    WHERE r.refreshed_at < now() - interval '1 day'
        AND r.refreshed_at < (SELECT max(j.finished_at) FROM job AS j WHERE j.finished_at IS NOT NULL)
$$;
COMMENT ON FUNCTION loracomp.check_queue IS
'Whether jobs are answered: leases, due jobs, workers alive and of one version, reports up to date.';
