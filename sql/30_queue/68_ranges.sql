-- Ranges of job ids: each has a partition of prediction and one of audit_event, in schema loracomp_parts.
--   job_ranges                  the ranges with their partitions
--   make_partitions             makes the range of the next jobs; a step of the keeper
--     range_width
--     is_sparse                 whether few of the latest ids belong to jobs
--     add_range
--   past_range                  the oldest range whose jobs have all ended long ago; purge_jobs calls it
--   drop_empty_ranges           drops ranges without jobs; purge_jobs calls it
--     drop_range                drops a range with its answers and events
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
    WITH bound AS MATERIALIZED ( -- the bounds of each partition are read once, and both tables' partitions are joined by them
        SELECT i.inhparent AS parent, c.oid::regclass AS part, coalesce(b.ids[1]::bigint, 0) AS first_id, b.ids[2]::bigint AS end_id
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        CROSS JOIN LATERAL regexp_match(
            pg_get_expr(c.relpartbound, c.oid), 'FROM [(](?:MINVALUE|''([0-9]+)'')[)] TO [(]''([0-9]+)''[)]'
        ) AS b (ids)
        WHERE i.inhparent IN ('loracomp.prediction'::regclass, 'loracomp_parts.audit_event_jobs'::regclass) AND b.ids IS NOT NULL
    )
    SELECT p.first_id, p.end_id, p.part, e.part
    FROM bound AS p
    LEFT JOIN bound AS e
        ON e.first_id = p.first_id AND e.end_id = p.end_id AND e.parent = 'loracomp_parts.audit_event_jobs'::regclass
    WHERE p.parent = 'loracomp.prediction'::regclass
    ORDER BY p.first_id;
$$;
COMMENT ON FUNCTION loracomp.job_ranges IS
'Ranges of job ids, from first_id to before end_id, with the partitions of prediction and audit_event that contain the answers to '
'these jobs and their events.';

CREATE FUNCTION loracomp.range_width() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1000000;
COMMENT ON FUNCTION loracomp.range_width IS 'How many job ids a range has, unless few of them belong to jobs.';

-- Reads at most the last million entries of the index.
CREATE FUNCTION loracomp.is_sparse(newest bigint) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT count(*) < loracomp.range_width() / 10
    FROM (
        SELECT FROM loracomp.job AS j
        WHERE j.id > is_sparse.newest - loracomp.range_width() AND j.id <= is_sparse.newest LIMIT loracomp.range_width() / 10
    ) AS jobs;
$$;
COMMENT ON FUNCTION loracomp.is_sparse IS
'Whether fewer than a tenth of the latest ids, as many as a range has, belong to jobs. For make_partitions.';

-- Waits at most a tenth of a second for each lock, because others wait behind it. Jobs whose range could not be made yet are answered too;
-- their answers and events go into the partitions prediction_others and audit_event_job_others.
--
-- An INSERT that is refused or rolled back uses up its ids, and anybody can use up a million in minutes. If few of the latest ids belong to
-- jobs, the next range is therefore wider by an eighth of all ids so far: even a hundred billion ids without jobs make about a hundred ranges.
CREATE FUNCTION loracomp.make_partitions() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    width CONSTANT bigint := loracomp.range_width();
    newest CONSTANT bigint := (SELECT s.last_value FROM loracomp.job_id_seq AS s);
    needed bigint := (newest / width + 2) * width;
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
    IF loracomp.is_sparse(newest) THEN
        needed := needed + newest / 8 / width * width;
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

-- Reads only. The newest job of each range is looked at first, because that is fast and rules out most ranges. No range is looked at
-- after the first that fits.
CREATE FUNCTION loracomp.past_range(ended_before timestamptz, most_jobs integer)
RETURNS TABLE (first_id bigint, end_id bigint, predictions regclass, events regclass)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH r AS MATERIALIZED (
        SELECT * FROM loracomp.job_ranges() AS a
        WHERE a.end_id <= (SELECT s.last_value FROM loracomp.job_id_seq AS s)
        ORDER BY a.first_id
    )
    SELECT r.first_id, r.end_id, r.predictions, r.events
    FROM r
    WHERE (
        SELECT j.finished_at < past_range.ended_before FROM loracomp.job AS j
        WHERE j.id >= r.first_id AND j.id < r.end_id ORDER BY j.id DESC LIMIT 1
    ) AND (
        SELECT count(*) <= past_range.most_jobs AND bool_and(l.finished_at < past_range.ended_before)
        FROM (
            SELECT coalesce(j.finished_at, 'infinity') AS finished_at FROM loracomp.job AS j
            WHERE j.id >= r.first_id AND j.id < r.end_id LIMIT past_range.most_jobs::bigint + 1
        ) AS l
    )
    LIMIT 1;
$$;
COMMENT ON FUNCTION loracomp.past_range IS
'The oldest range of job ids that gets no new jobs, has jobs, but at most a given number, and whose jobs all ended before a given time.';

-- Everything that takes time comes before the locks, which last until the transaction ends. Waits at most a tenth of a second for each
-- lock, because others wait behind it. Once it has the locks, no answer and no event can be written, so the answer and events of a job that
-- appears later will go into the partitions for jobs without a range. These partitions also keep the events of jobs that were not purged but
-- erased. An error in the block gives back the locks.
CREATE FUNCTION loracomp.drop_range(first_id bigint, end_id bigint, predictions regclass, events regclass)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    erased bigint[];
BEGIN
    LOCK TABLE ONLY loracomp.prediction, ONLY loracomp_parts.audit_event_jobs IN ACCESS EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = drop_range.predictions) THEN
        RETURN true; -- another session has dropped it meanwhile
    END IF;
    IF EXISTS (SELECT FROM loracomp.job AS j WHERE j.id >= drop_range.first_id AND j.id < drop_range.end_id) THEN
        RAISE lock_not_available; -- somebody else has locked the job, or it has just appeared
    END IF;
    EXECUTE format('SELECT ARRAY(SELECT DISTINCT entity_id FROM %s WHERE action = ''delete'')', events) INTO erased;
    IF erased <> '{}' THEN
        EXECUTE format('ALTER TABLE loracomp_parts.audit_event_jobs DETACH PARTITION %s', events);
        EXECUTE format('INSERT INTO loracomp.audit_event OVERRIDING SYSTEM VALUE SELECT * FROM %s WHERE entity_id = ANY ($1)', events)
            USING erased;
    END IF;
    EXECUTE format('DROP TABLE %s, %s', predictions, events);
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN
        RETURN false;
END
$$;
COMMENT ON FUNCTION loracomp.drop_range IS
'Drops answers and events of a range whose jobs are deleted; returns false if it has jobs, or other sessions use the tables. For purge_jobs.';

-- Reads which ranges are empty before it locks anything. Begins no other range after a tenth of a second, because the first one's locks keep
-- others from reading and recording answers until the transaction ends.
CREATE FUNCTION loracomp.drop_empty_ranges() RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    part record;
    until timestamptz;
    dropped integer := 0;
BEGIN
    FOR part IN
        SELECT r.* FROM loracomp.job_ranges() AS r
        WHERE r.end_id <= (SELECT s.last_value FROM loracomp.job_id_seq AS s)
            AND (SELECT min(j.id) FROM loracomp.job AS j WHERE j.id >= r.first_id AND j.id < r.end_id) IS NULL
        ORDER BY r.first_id
    LOOP
        until := coalesce(until, clock_timestamp() + interval '100 ms');
        dropped := dropped + loracomp.drop_range(part.first_id, part.end_id, part.predictions, part.events)::int;
        EXIT WHEN clock_timestamp() > until;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION loracomp.drop_empty_ranges IS
'Drops ranges that have no jobs and get none, for about a tenth of a second; returns how many. For purge_jobs.';

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
