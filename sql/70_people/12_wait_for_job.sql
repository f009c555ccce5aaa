-- Waits until a job has ended or the timeout is over, and returns its status. It only reads, with the caller's rights. Each turn of its
-- loop takes a new snapshot, and so sees what was committed meanwhile.
CREATE FUNCTION loracomp.wait_for_job(id bigint, timeout interval DEFAULT '30 seconds') RETURNS text
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    until timestamptz;
    pause double precision := 0.02;
    found_job record;
BEGIN
    PERFORM loracomp.check_wait(wait_for_job.timeout);
    until := clock_timestamp() + wait_for_job.timeout;
    LOOP
        SELECT j.status, j.finished_at IS NOT NULL AS has_ended, j.xmin = pg_current_xact_id_if_assigned()::xid AS is_new
        INTO found_job
        FROM loracomp.job AS j WHERE j.id = wait_for_job.id;
        IF found_job.status IS NULL THEN
            RAISE EXCEPTION 'job % does not exist, or is not yours', wait_for_job.id
                USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
        END IF;
        IF found_job.is_new AND NOT found_job.has_ended THEN
            RAISE EXCEPTION 'job % was changed in this transaction, and no worker sees the change before it is committed',
                wait_for_job.id
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'COMMIT, then wait';
        END IF;
        EXIT WHEN found_job.has_ended OR clock_timestamp() >= until;
        PERFORM pg_sleep(least(pause, extract(EPOCH FROM until - clock_timestamp())));
        pause := least(pause * 1.5, 0.5);
    END LOOP;
    RETURN found_job.status;
END
$$;
COMMENT ON FUNCTION loracomp.wait_for_job IS
'Waits until one of the caller''s jobs has ended or the timeout (5 minutes at most) is over, and returns its status.';
