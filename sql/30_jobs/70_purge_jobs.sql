-- Deletes ended jobs, oldest first, with their predictions and audit events. Call it until it returns 0. Jobs that ended within
-- the last hour are deleted only with force, because a typing error such as a minus sign would delete unread answers. The sums of
-- their days are kept (note_purged_days).
CREATE FUNCTION loracomp.purge_jobs(
    older_than interval, batch integer DEFAULT 10000, force boolean DEFAULT false
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    ended_before timestamptz;
    purged bigint[];
BEGIN
    IF purge_jobs.older_than IS NULL THEN
        RAISE EXCEPTION 'older_than must not be null'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'write how long ago jobs must have ended, such as 90 days';
    END IF;
    PERFORM loracomp.check_range('batch', purge_jobs.batch, 0, 10000000);
    -- At most 100 years (in seconds), so that the subtraction gives a valid time.
    PERFORM loracomp.check_range('older_than', extract(EPOCH FROM purge_jobs.older_than), -3.2e9, 3.2e9);
    ended_before := now() - purge_jobs.older_than;
    IF ended_before > now() THEN
        RAISE EXCEPTION 'older_than must not be negative, and is %', purge_jobs.older_than
            USING ERRCODE = 'invalid_parameter_value', HINT = 'write how long ago jobs must have ended, such as 90 days';
    END IF;
    IF ended_before > now() - interval '1 hour' AND purge_jobs.force IS NOT true THEN
        RAISE EXCEPTION 'older_than must be at least an hour, and is %', purge_jobs.older_than
            USING ERRCODE = 'invalid_parameter_value',
                HINT = 'with force => true, jobs that ended within the last hour are deleted too';
    END IF;
    PERFORM set_config('loracomp.purging', 'on', true); -- lets the audit's triggers know
    purged := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.finished_at IS NOT NULL AND j.finished_at < ended_before
        ORDER BY j.finished_at LIMIT purge_jobs.batch
        FOR UPDATE SKIP LOCKED
    );
    PERFORM loracomp.note_purged_days(purged);
    DELETE FROM loracomp.job AS j WHERE j.id = ANY (purged);
    DELETE FROM loracomp.audit_event AS a WHERE a.entity = 'job' AND a.entity_id = ANY (purged);
    PERFORM set_config('loracomp.purging', 'off', true);
    RETURN cardinality(purged);
END
$$;
COMMENT ON FUNCTION loracomp.purge_jobs IS
'Deletes up to a batch of ended jobs with their predictions and events; returns how many, 0 when none is left.
Jobs that ended within the last hour are deleted only with force. Reports in bi keep the sums of the deleted jobs by day.';
