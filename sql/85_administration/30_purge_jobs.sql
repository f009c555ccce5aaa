-- Deletes ended jobs of whole days, oldest first, with their predictions and audit events. Call it until it returns 0. If all jobs of a
-- partition have ended long enough ago and fit into one batch, the partitions with their answers and events are dropped. So are those whose
-- jobs are all deleted already; a call that finds only these returns how many it dropped, so that calls go on until none is left. Before it deletes
-- jobs, it computes the reports of their days for the last time (close_days). It therefore deletes only jobs of days (in UTC) that were
-- over at least an hour ago: until then, a transaction that began on such a day may still be ending jobs. With force, it also deletes jobs
-- of later days, and the reports lose these jobs. An age below an hour needs force as well, because a typing error such as a minus sign
-- would otherwise delete answers that nobody has read.
CREATE FUNCTION loracomp.purge_jobs(
    older_than interval, batch integer DEFAULT 10000, force boolean DEFAULT false
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    over_before CONSTANT date := (now() - interval '1 hour') AT TIME ZONE 'UTC';
    ended_before timestamptz;
    has_current_snapshot CONSTANT boolean := current_setting('transaction_isolation') = 'read committed';
    past record;
    purged bigint[] := '{}';
    newest date;
    dropped integer := 0;
BEGIN
    PERFORM loracomp.check_range('batch', purge_jobs.batch, 0, 10000000);
    -- At most 100 years, so that the subtraction below gives a valid timestamp.
    PERFORM loracomp.check_range('older_than in seconds', extract(EPOCH FROM purge_jobs.older_than), 0, 3.2e9);
    ended_before := now() - purge_jobs.older_than;
    IF ended_before > now() - interval '1 hour' AND purge_jobs.force IS NOT true THEN
        RAISE EXCEPTION 'older_than must be at least an hour, and is %', purge_jobs.older_than
            USING ERRCODE = 'invalid_parameter_value',
                HINT = 'with force => true, jobs that ended within the last hour are deleted too';
    END IF;
    IF purge_jobs.force IS NOT true THEN
        ended_before := date_trunc('day', least(ended_before, now() - interval '1 hour') AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    END IF;
    LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE; -- as refresh_reports does, and first, as functions that erase do
    WHILE loracomp.take_answers() > 0 LOOP NULL; END LOOP; -- so that views of declarations keep the answers
    PERFORM set_config('loracomp.purging', 'on', true); -- the triggers of job and audit_event read this
    -- Ranges are dropped only with isolation level READ COMMITTED, because with another one they could contain jobs that this transaction
    -- doesn't see.
    SELECT r.* INTO past FROM loracomp.past_range(ended_before, purge_jobs.batch) AS r
    WHERE purge_jobs.batch > 0 AND has_current_snapshot;
    purged := ARRAY(
        SELECT j.id FROM loracomp.job AS j
        WHERE j.id >= past.first_id AND j.id < past.end_id AND j.finished_at < ended_before
        ORDER BY j.id
        FOR UPDATE SKIP LOCKED
    );
    IF purged = '{}' THEN
        purged := ARRAY(
            SELECT j.id FROM loracomp.job AS j
            WHERE j.finished_at IS NOT NULL AND j.finished_at < ended_before
            ORDER BY j.finished_at LIMIT purge_jobs.batch
            FOR UPDATE SKIP LOCKED
        );
    END IF;
    newest := (SELECT max((j.finished_at AT TIME ZONE 'UTC')::date) FROM loracomp.job AS j WHERE j.id = ANY (purged));
    PERFORM loracomp.close_days(least(newest + 1, over_before)) WHERE newest IS NOT NULL;
    DELETE FROM loracomp.job AS j WHERE j.id = ANY (purged);
    PERFORM loracomp.ask_again(purged);
    PERFORM loracomp.delete_records(ARRAY(
        SELECT u.id FROM unnest(purged) AS u (id) WHERE (u.id >= past.first_id AND u.id < past.end_id) IS NOT TRUE
    ));
    -- Drop partitions last, because dropping locks the tables until the transaction ends. If others are using them, the rows are deleted
    -- instead, and a later call drops the empty partitions.
    IF past.end_id IS NOT NULL AND NOT loracomp.drop_range(past.first_id, past.end_id, past.predictions, past.events) THEN
        PERFORM loracomp.delete_records(purged);
    END IF;
    IF purge_jobs.batch > 0 AND has_current_snapshot THEN
        dropped := loracomp.drop_empty_ranges();
    END IF;
    PERFORM set_config('loracomp.purging', 'off', true);
    PERFORM loracomp.drop_counters();
    RETURN coalesce(nullif(cardinality(purged), 0), dropped);
END
$$;
COMMENT ON FUNCTION loracomp.purge_jobs IS
'Deletes up to a batch of ended jobs with their predictions and events, and returns how many, or if there were none, how many empty '
'partitions it dropped; 0 means that nothing is left. Deletes only '
'whole days in UTC, so that reports in bi keep counting the jobs. With force it also deletes a part of a day, whose jobs the reports then '
'lose.';
