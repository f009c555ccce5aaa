-- drop: DROP FUNCTION IF EXISTS loracomp.explain_state(loracomp.job)
-- Reads only.
CREATE FUNCTION loracomp.explain_state(job loracomp.job)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    format(
        'Job %s: %s%s. Submitted by %s at %s.',
        job.id, job.status, CASE WHEN job.kind = 'route' THEN ' (weights only)' END, job.submitted_by,
        to_char(job.created_at, 'YYYY-MM-DD HH24:MI:SS TZ')
    ),
    CASE job.status
        WHEN 'succeeded' THEN format(
            'Answered by attempt %s of %s, %s s after it could start.', job.attempts, job.max_attempts,
            loracomp.seconds_between(greatest(job.created_at, job.run_at), job.finished_at)
        )
        WHEN 'failed' THEN format('Failed after attempt %s of %s.', job.attempts, job.max_attempts)
        WHEN 'cancelled' THEN format('Cancelled at %s.', to_char(job.finished_at, 'YYYY-MM-DD HH24:MI:SS TZ'))
        WHEN 'running' THEN format(
            'Attempt %s of %s runs on worker %s for %s s.', job.attempts, job.max_attempts, job.worker,
            loracomp.seconds_between(job.claimed_at, now())
        )
        WHEN 'queued' THEN CASE
            WHEN job.run_at > now()
                THEN format(
                    'Not before %s (in %s s).', to_char(job.run_at, 'YYYY-MM-DD HH24:MI:SS TZ'),
                    loracomp.seconds_between(now(), job.run_at)
                )
            ELSE format('Due for %s s.', loracomp.seconds_between(greatest(job.created_at, job.run_at), now()))
        END
    END,
    'Error: ' || job.error_code || ': ' || job.error
);
END;
COMMENT ON FUNCTION loracomp.explain_state IS 'Where a job stands, for explain_job.';
