-- Ranges of job ids: each has a partition of prediction and one of audit_event, in schema loracomp_parts.
--   job_ranges                  the ranges with their partitions
--   make_partitions             makes the range of the next jobs; a step of the keeper
--     range_width
--     add_range
--   past_range                  the oldest range whose jobs have all ended long ago; purge_jobs calls it
--   drop_range                  drops a range with its answers and events; purge_jobs calls it
--   delete_records              deletes answers and events one by one; purge_jobs calls it
--   triggers delete_predictions and truncate_predictions
--                               delete the answers to jobs that another function deletes

-- Reads only. Three partitions have no range: prediction_others and audit_event_job_others take what belongs to jobs that no range
-- contains, and audit_event_others has the events of the registry.
CREATE FUNCTION loracomp.job_ranges()
RETURNS TABLE (first_id bigint, end_id bigint, predictions regclass, events regclass)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT
        coalesce(b.ids[1]::bigint, 0), b.ids[2]::bigint, c.oid::regclass,
        (
            SELECT e.oid::regclass FROM pg_inherits AS h JOIN pg_class AS e ON e.oid = h.inhrelid
            WHERE h.inhparent = 'loracomp_parts.audit_event_jobs'::regclass
                AND pg_get_expr(e.relpartbound, e.oid) = pg_get_expr(c.relpartbound, c.oid)
        )
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL regexp_match(
        pg_get_expr(c.relpartbound, c.oid), 'FROM [(](?:MINVALUE|''([0-9]+)'')[)] TO [(]''([0-9]+)''[)]'
    ) AS b (ids)
    WHERE i.inhparent = 'loracomp.prediction'::regclass AND b.ids IS NOT NULL
    ORDER BY 1;
$$;
COMMENT ON FUNCTION loracomp.job_ranges IS
'Ranges of job ids, from first_id to before end_id, with the partitions of prediction and audit_event that contain the answers to '
'these jobs and their events.';

CREATE FUNCTION loracomp.range_width() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1000000;
COMMENT ON FUNCTION loracomp.range_width IS 'How many job ids a range has.';

-- Waits at most a tenth of a second for each lock, because others wait behind it. Jobs whose range could not be made yet are answered too;
-- their answers and events go into the partitions prediction_others and audit_event_job_others.
CREATE FUNCTION loracomp.make_partitions() RETURNS boolean
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
    IF (SELECT max(r.end_id) FROM loracomp.job_ranges() AS r) >= needed THEN
        RETURN false;
    END IF;
    -- One session at a time: sessions that waited see the ranges that the first one has made.
    LOCK TABLE ONLY loracomp.prediction IN SHARE UPDATE EXCLUSIVE MODE;
    -- A range begins after the answers and events that are in the partitions for jobs without a range already.
    SELECT greatest(
        (SELECT max(r.end_id) FROM loracomp.job_ranges() AS r),
        (SELECT max(p.job_id) / width * width + width FROM loracomp_parts.prediction_others AS p),
        (
            SELECT max(e.entity_id) / width * width + width FROM loracomp_parts.audit_event_job_others AS e
            WHERE e.entity = 'job'
        )
    ) INTO first_id;
    IF first_id >= needed THEN
        RETURN false;
    END IF;
    PERFORM loracomp.add_range(coalesce(first_id, 0), needed);
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected OR check_violation THEN
        RAISE WARNING 'no range was made for jobs from %, because prediction or audit_event is in use', coalesce(first_id, newest)
            USING DETAIL = sqlerrm, HINT = 'call loracomp.make_partitions() again; the keeper does so every minute';
        RETURN false;
END
$$;
COMMENT ON FUNCTION loracomp.make_partitions IS
'Makes the partitions for answers and events of the next jobs, if it is time; returns whether it made them. The keeper calls it every minute.';

-- A partition has the same columns, constraints, indexes and comments as its table. A whole row of prediction stays in its page:
-- with the default of 2 kB, parts of rows were compressed and moved to the TOAST table, which took a quarter of the CPU time of
-- recording. Without statistics of the answers, erasing leaves none behind. Row security without a policy keeps out
-- all but the owner, including members of pg_read_all_data. If somebody reads through the table, only the table's policies apply.
CREATE FUNCTION loracomp.add_range(first_id bigint, end_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    statement text;
BEGIN
    FOREACH statement IN ARRAY ARRAY[
        'CREATE TABLE loracomp_parts.prediction_%1$s (LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080)',
        'ALTER TABLE loracomp_parts.prediction_%1$s ENABLE ROW LEVEL SECURITY, ALTER COLUMN output SET STATISTICS 0',
        'COMMENT ON TABLE loracomp_parts.prediction_%1$s IS ''Answers to the jobs from %1$s to %3$s.''',
        'ALTER TABLE loracomp.prediction ATTACH PARTITION loracomp_parts.prediction_%1$s FOR VALUES FROM (%1$s) TO (%2$s)',
        'CREATE TABLE loracomp_parts.audit_event_%1$s '
            '(LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY, PRIMARY KEY (id))',
        'ALTER TABLE loracomp_parts.audit_event_%1$s ENABLE ROW LEVEL SECURITY',
        'COMMENT ON TABLE loracomp_parts.audit_event_%1$s IS ''Events of the jobs from %1$s to %3$s.''',
        'ALTER TABLE loracomp_parts.audit_event_jobs ATTACH PARTITION loracomp_parts.audit_event_%1$s '
            'FOR VALUES FROM (%1$s) TO (%2$s)'
    ] LOOP
        EXECUTE format(statement, first_id, end_id, end_id - 1);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.add_range IS 'Makes the partitions for answers and events of a range of jobs. For make_partitions.';

-- Reads only. The newest job of each range is looked at first, because that is fast and rules out most ranges.
CREATE FUNCTION loracomp.past_range(ended_before timestamptz, most_jobs integer, OUT first_id bigint, OUT end_id bigint)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT r.first_id, r.end_id
    FROM loracomp.job_ranges() AS r
    WHERE r.end_id <= (SELECT s.last_value FROM loracomp.job_id_seq AS s)
        AND coalesce(
            (
                SELECT coalesce(j.finished_at < past_range.ended_before, FALSE) FROM loracomp.job AS j
                WHERE j.id >= r.first_id AND j.id < r.end_id ORDER BY j.id DESC LIMIT 1
            ),
            TRUE
        )
        AND (
            SELECT count(*) <= past_range.most_jobs AND coalesce(bool_and(l.finished_at < past_range.ended_before), TRUE)
            FROM (
                SELECT coalesce(j.finished_at, 'infinity') AS finished_at FROM loracomp.job AS j
                WHERE j.id >= r.first_id AND j.id < r.end_id LIMIT past_range.most_jobs::bigint + 1
            ) AS l
        )
    ORDER BY r.first_id LIMIT 1;
$$;
COMMENT ON FUNCTION loracomp.past_range IS
'The oldest range of job ids that gets no new jobs, has at most a given number of them, and whose jobs all ended before a given time; or nulls.';

-- Waits at most a tenth of a second for each lock, because others wait behind it. Once it has the locks, no answer and no event can be
-- written, so the answer and events of a job that appears later will go into the partitions for jobs without a range. These partitions also
-- keep the events of jobs that were not purged but erased.
CREATE FUNCTION loracomp.drop_range(first_id bigint, end_id bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    erased bigint[];
    part record;
BEGIN
    LOCK TABLE ONLY loracomp.prediction, ONLY loracomp_parts.audit_event_jobs IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM loracomp.job AS j WHERE j.id >= drop_range.first_id AND j.id < drop_range.end_id) THEN
        RETURN false;
    END IF;
    erased := ARRAY(
        SELECT DISTINCT e.entity_id FROM loracomp.audit_event AS e
        WHERE e.entity = 'job' AND e.entity_id >= drop_range.first_id AND e.entity_id < drop_range.end_id
            AND e.action = 'delete'
    );
    FOR part IN SELECT r.predictions, r.events FROM loracomp.job_ranges() AS r WHERE r.end_id = drop_range.end_id LOOP
        EXECUTE format('ALTER TABLE loracomp_parts.audit_event_jobs DETACH PARTITION %s', part.events);
        EXECUTE format(
            'INSERT INTO loracomp.audit_event OVERRIDING SYSTEM VALUE SELECT * FROM %s WHERE entity_id = ANY ($1)', part.events
        ) USING erased;
        EXECUTE format('DROP TABLE %s, %s', part.predictions, part.events);
    END LOOP;
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        RETURN false;
END
$$;
COMMENT ON FUNCTION loracomp.drop_range IS
'Drops answers and events of a range whose jobs are deleted; returns false if other sessions use the tables. For purge_jobs.';

-- The plan is forced to look for each job in its own partition. To compare the ids with the ranges beforehand, as for = ANY, takes
-- longer than the deletion.
CREATE FUNCTION loracomp.delete_records(ids bigint[]) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
    DELETE FROM loracomp.prediction AS p USING unnest(delete_records.ids) AS i (id) WHERE p.job_id = i.id;
    DELETE FROM loracomp.audit_event AS a USING unnest(delete_records.ids) AS i (id) WHERE a.entity = 'job' AND a.entity_id = i.id;
$$;
COMMENT ON FUNCTION loracomp.delete_records IS 'Deletes the answers and events of purged jobs one by one. For purge_jobs.';

-- purge_jobs deletes or drops the answers itself. The plan is forced as in delete_records.
CREATE FUNCTION loracomp.delete_predictions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET jit = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
BEGIN
    IF tg_op = 'TRUNCATE' THEN
        TRUNCATE loracomp.prediction;
    ELSIF current_setting('loracomp.purging', true) IS DISTINCT FROM 'on' THEN
        DELETE FROM loracomp.prediction AS p USING old_job AS o WHERE p.job_id = o.id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.delete_predictions IS 'Trigger: deletes the answers to jobs that are deleted.';

CREATE TRIGGER delete_predictions AFTER DELETE ON loracomp.job
REFERENCING OLD TABLE AS old_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.delete_predictions();

CREATE TRIGGER truncate_predictions AFTER TRUNCATE ON loracomp.job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.delete_predictions();
