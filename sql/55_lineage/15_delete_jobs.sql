-- drop: DROP FUNCTION IF EXISTS loracomp.delete_jobs(bigint[])
-- Deletes jobs with their answers, whatever their status: a worker that holds one finds its fence void. It waits for a
-- worker that is writing an answer, and takes that along. Who calls it sets the reason that the audit's events get.
CREATE FUNCTION loracomp.delete_jobs(ids bigint[], OUT deleted bigint[], OUT unfinished bigint, OUT predictions bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    -- Whoever calls may have set it, and would be taken for purge_jobs, which leaves one event for all jobs.
    purging CONSTANT text := set_config('loracomp.purging', 'off', true);
BEGIN
    -- Locked in the order in which workers lock them.
    SELECT coalesce(array_agg(l.id), '{}'), count(*) FILTER (WHERE l.finished_at IS NULL)
    INTO delete_jobs.deleted, delete_jobs.unfinished
    FROM (
        SELECT j.id, j.finished_at FROM loracomp.job AS j WHERE j.id = ANY (delete_jobs.ids) ORDER BY j.id FOR UPDATE
    ) AS l;
    SELECT count(*) INTO delete_jobs.predictions
    FROM loracomp.prediction AS p WHERE p.job_id = ANY (delete_jobs.deleted);
    DELETE FROM loracomp.job AS j WHERE j.id = ANY (delete_jobs.deleted);
END
$$;
COMMENT ON FUNCTION loracomp.delete_jobs IS
'Deletes jobs with their answers and traces; which were there, how many had not ended, and how many answers there were.';
