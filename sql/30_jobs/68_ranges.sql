-- Ranges of job ids: each has a partition of prediction, in schema loracomp_parts.
--   job_range                   the ranges with their partitions
--   maintain                    makes the range of the next jobs; workers call it every minute
--     range_width
--     add_range
--   past_range                  the oldest range whose jobs have all ended long ago; purge_jobs calls it
--   drop_range                  drops a range with its answers; purge_jobs calls it
--   trigger delete_predictions  deletes the answers to jobs that are deleted one by one

-- Reads only. The partition prediction_others has no range: it takes the answers to jobs that no range contains.
CREATE VIEW loracomp.job_range WITH (security_invoker) AS
SELECT
    coalesce(b.ids[1]::bigint, 0) AS first_id,
    b.ids[2]::bigint AS end_id,
    c.oid::regclass AS predictions
FROM pg_catalog.pg_inherits AS i
INNER JOIN pg_catalog.pg_class AS c ON i.inhrelid = c.oid
CROSS JOIN LATERAL regexp_match(
    pg_get_expr(c.relpartbound, c.oid), 'FROM \((?:MINVALUE|''(\d+)'')\) TO \(''(\d+)''\)'
) AS b (ids)
WHERE i.inhparent = 'loracomp.prediction'::regclass AND b.ids IS NOT NULL;
COMMENT ON VIEW loracomp.job_range IS 'Ranges of job ids, each with the partition that contains the answers to its jobs.';
COMMENT ON COLUMN loracomp.job_range.first_id IS 'The first id of the range.';
COMMENT ON COLUMN loracomp.job_range.end_id IS 'The first id after the range.';
COMMENT ON COLUMN loracomp.job_range.predictions IS 'Partition of prediction with the answers to these jobs.';

CREATE FUNCTION loracomp.range_width() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1000000;
COMMENT ON FUNCTION loracomp.range_width IS 'How many job ids a range has.';

-- Waits at most a tenth of a second for a lock, because others wait behind it. Jobs whose range could not be made yet are answered
-- all the same; their answers go into the partition prediction_others.
CREATE FUNCTION loracomp.maintain() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    width CONSTANT bigint := loracomp.range_width();
    newest CONSTANT bigint := (SELECT s.last_value FROM loracomp.job_id_seq AS s);
    needed CONSTANT bigint := (newest / width + 2) * width;
    first_id bigint;
BEGIN
    IF (SELECT max(r.end_id) FROM loracomp.job_range AS r) >= needed THEN
        RETURN false;
    END IF;
    -- One session at a time: those that waited see what the first has made.
    LOCK TABLE ONLY loracomp.prediction IN SHARE UPDATE EXCLUSIVE MODE;
    -- A range begins after the answers that are in prediction_others already.
    SELECT greatest(
        (SELECT max(r.end_id) FROM loracomp.job_range AS r),
        (SELECT max(p.job_id) / width * width + width FROM loracomp_parts.prediction_others AS p)
    ) INTO first_id;
    IF first_id >= needed THEN
        RETURN false;
    END IF;
    PERFORM loracomp.add_range(coalesce(first_id, 0), needed);
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected OR check_violation THEN
        RAISE WARNING 'no range was made for jobs from %, because prediction is in use', coalesce(first_id, newest)
            USING DETAIL = sqlerrm, HINT = 'call loracomp.maintain() again; workers do so every minute';
        RETURN false;
END
$$;
COMMENT ON FUNCTION loracomp.maintain IS
'Makes the partition for the answers to the next jobs, if it is time; returns whether it made one. Workers call it every minute.';

-- A partition has the same columns, constraints, indexes and comments as prediction. Two whole rows fit on a page of 8 kB: with the
-- default of 2 kB, parts of rows were compressed and moved to the TOAST table, which took a quarter of the CPU time of recording.
-- Without statistics of the answers, EXPLAIN tells nobody what is in those of others.
CREATE FUNCTION loracomp.add_range(first_id bigint, end_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    part CONSTANT text := format('loracomp_parts.prediction_%s', first_id);
BEGIN
    EXECUTE format('CREATE TABLE %s (LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080)', part);
    EXECUTE format('ALTER TABLE %s ALTER COLUMN output SET STATISTICS 0', part);
    EXECUTE format('COMMENT ON TABLE %s IS ''Answers to the jobs from %s to %s.''', part, first_id, end_id - 1);
    EXECUTE format(
        'ALTER TABLE loracomp.prediction ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', part, first_id, end_id
    );
END
$$;
COMMENT ON FUNCTION loracomp.add_range IS 'Makes the partition for the answers to a range of jobs. For maintain.';

-- Reads only. The newest job of each range is looked at first, because that is fast and rules out most ranges.
CREATE FUNCTION loracomp.past_range(ended_before timestamptz, OUT first_id bigint, OUT end_id bigint)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT r.first_id, r.end_id
    FROM loracomp.job_range AS r
    WHERE r.end_id <= (SELECT s.last_value FROM loracomp.job_id_seq AS s)
        AND coalesce(
            (
                SELECT coalesce(j.finished_at < past_range.ended_before, FALSE) FROM loracomp.job AS j
                WHERE j.id >= r.first_id AND j.id < r.end_id ORDER BY j.id DESC LIMIT 1
            ),
            TRUE
        )
        AND NOT EXISTS (
            SELECT FROM loracomp.job AS j
            WHERE j.id >= r.first_id AND j.id < r.end_id AND (j.finished_at < past_range.ended_before) IS NOT TRUE
        )
    ORDER BY r.first_id LIMIT 1;
$$;
COMMENT ON FUNCTION loracomp.past_range IS
'The oldest range of job ids that gets no new jobs, and whose jobs have all ended before a time; nulls if there is none.';

-- Waits at most a tenth of a second for the lock, because others wait behind it. Once it has the lock, no answer can be written, so
-- a job of the range that appears later will find its answer in prediction_others.
CREATE FUNCTION loracomp.drop_range(first_id bigint, end_id bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
BEGIN
    LOCK TABLE ONLY loracomp.prediction IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM loracomp.job AS j WHERE j.id >= drop_range.first_id AND j.id < drop_range.end_id) THEN
        RETURN false;
    END IF;
    EXECUTE (
        SELECT format('DROP TABLE IF EXISTS %s', r.predictions) FROM loracomp.job_range AS r
        WHERE r.end_id = drop_range.end_id
    );
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        RETURN false;
END
$$;
COMMENT ON FUNCTION loracomp.drop_range IS
'Drops the answers to a range whose jobs are deleted; returns false if others use the table. For purge_jobs.';

-- purge_jobs deletes or drops the answers itself.
CREATE FUNCTION loracomp.delete_predictions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF current_setting('loracomp.purging', true) IS DISTINCT FROM 'on' THEN
        DELETE FROM loracomp.prediction AS p WHERE p.job_id = ANY (ARRAY(SELECT o.id FROM old_job AS o));
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.delete_predictions IS 'Trigger: deletes the answers to jobs that are deleted.';

CREATE TRIGGER delete_predictions AFTER DELETE ON loracomp.job
REFERENCING OLD TABLE AS old_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.delete_predictions();
COMMENT ON TRIGGER delete_predictions ON loracomp.job IS 'Deletes the answers to deleted jobs.';
