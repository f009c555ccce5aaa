-- A job's place in the queue: the number by which jobs are claimed, the lowest first.
--   trigger place_job           gives a new job its place
--     is_background             whether a job is claimed only if no other job is due; set_priority calls it too
--   take_place                  gives one; wake_jobs, retry_job and set_priority call it too
--     make_counter              finds or makes a counter; limits call it too
--       add_counter             only if it can't be found
--     queue_level
--     counter_name              20_registry/15_queues.sql
--   return_places               takes back the places of jobs that the queue's limit refuses; admit_jobs calls it
--   pick_jobs                   locks the first jobs of the queue for claim_jobs
--   drop_counters               drops the counters of roles and base models that are gone; purge_jobs calls it
--
-- Submitters take turns (fair queueing by start tags). At each priority a submitter's jobs have places one after the other, and all of them
-- come after the jobs of this priority that are claimed already. So among the jobs of its own priority, a job waits for as many turns of
-- every other submitter as its own submitter has jobs before it.
--
-- Across priorities less holds. Each step of priority is worth 1,000 places, which all submitters at the higher priority share: up to 10,000
-- of their jobs at priority 10, or 55,000 at all priorities from 1 to 10, come before a new job at priority 0. When these places are used up,
-- a submitter has a turn at each priority that it uses, and thus several turns. No later jobs hold up a job for ever.
--
-- Only a function that queues or moves a job gives it a place: place_job a new one, wake_jobs one that waited for its time, retry_job one
-- that had ended, and set_priority one that moves. fail_jobs and rescue_jobs leave it to wake_jobs: they mark the job as scheduled.
--
-- Counters are sequences, because these take no lock that lasts and leave no dead tuples. Each base model has two queues, one of them in the
-- background, and each queue has a level for each of its priorities. A level has a counter for every submitter, which holds the submitter's
-- last place, and one of its own, which holds the place behind which its new jobs stand and which is made with the base model
-- (20_registry/15_queues.sql).

-- Measurements are in the background at any priority, and old work comes from there with a priority below 0. A priority out of range is
-- refused only after its job has got a place.
CREATE FUNCTION loracomp.queue_level(priority integer, background boolean) RETURNS integer
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN background THEN greatest(least(priority, 0), -10) + 10 ELSE least(greatest(priority, 0), 10) END;
COMMENT ON FUNCTION loracomp.queue_level IS 'Priority as a level of its queue, from 0 to 10.';

-- Every INSERT of a job calls it, so what is seldom needed is a function of its own.
CREATE FUNCTION loracomp.make_counter(name text) RETURNS regclass
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN coalesce(to_regclass(name), loracomp.add_counter(name));
END
$$;
COMMENT ON FUNCTION loracomp.make_counter IS 'The sequence of this name, made if it is missing, or another that stands for it at the moment.';

-- A counter that another transaction has just made can't be seen before that transaction ends. Nobody waits for that: after 10 ms, this transaction
-- makes another counter, with a number after its name, and all transactions that don't see the first one use that one as soon as they see it. So a
-- submitter has at most as many turns as it had transactions open when it began to use a priority. The number is random, so that it is hardly ever one
-- of another open transaction. There is no advisory lock, because any login could hold it. The name is null, and so is the counter, if the job's
-- base model is gone.
CREATE FUNCTION loracomp.add_counter(name text) RETURNS regclass
LANGUAGE plpgsql VOLATILE STRICT
SET search_path = loracomp, pg_temp
SET lock_timeout = '10ms'
AS $$
DECLARE
    base_name CONSTANT text := split_part(name, '.', 2);
    tried text := name;
    counter regclass := (
        SELECT c.oid FROM pg_class AS c
        WHERE c.relnamespace = 'loracomp_parts'::regnamespace
            AND c.relname >= (base_name || '_0')::name AND c.relname < (base_name || '_a')::name
        ORDER BY c.relname LIMIT 1
    );
BEGIN
    WHILE counter IS NULL LOOP
        BEGIN
            EXECUTE format('CREATE SEQUENCE %s MINVALUE -9223372036854775808', tried);
        EXCEPTION WHEN lock_not_available OR duplicate_table OR unique_violation THEN
            NULL; -- another transaction has made it, and maybe it can be seen by now
        END;
        counter := to_regclass(tried);
        tried := name || '_' || floor(random() * 1000000);
    END LOOP;
    RETURN counter;
END
$$;
COMMENT ON FUNCTION loracomp.add_counter IS
'Makes a sequence of this name, or finds or makes one that stands for it while another transaction makes it. For make_counter.';

-- Uses the next place of the job's submitter, which is lost if the INSERT is undone. Retries have counters of their own, so that they don't wait
-- for all the new jobs of their submitter, and don't come before everybody's jobs. A job whose lease has expired (a suspect) will be claimed alone
-- and costs a worker as much as all the jobs that it can hold, so it uses 64 places.
CREATE FUNCTION loracomp.take_place(job loracomp.job, priority integer, background boolean) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    level CONSTANT integer := loracomp.queue_level(priority, background);
    base CONSTANT integer := (SELECT b.id FROM loracomp.base_model AS b WHERE b.name = job.base_model);
    whose CONSTANT text := CASE WHEN job.attempts > 0 OR job.expired_leases > 0 THEN 'retries of ' ELSE '' END || job.submitted_by;
    counter CONSTANT regclass := loracomp.make_counter(loracomp.counter_name(base, background, level, whose));
    next CONSTANT bigint := nextval(counter);
    place CONSTANT bigint := greatest(
        next,
        1 + coalesce(pg_sequence_last_value(to_regclass(loracomp.counter_name(base, background, level, ''))), -1000 * level)
    );
    is_suspect CONSTANT boolean := job.expired_leases > 0;
BEGIN
    IF place > next OR is_suspect THEN
        PERFORM setval(counter, place + CASE WHEN is_suspect THEN 63 ELSE 0 END);
    END IF;
    RETURN place;
END
$$;
COMMENT ON FUNCTION loracomp.take_place IS
'The place that a job gets in the queue now, at a priority: in the background, or among everyday work.';

CREATE FUNCTION loracomp.is_background(kind text, priority integer) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN kind = 'measure' OR priority < 0;
COMMENT ON FUNCTION loracomp.is_background IS
'Whether a job of this kind and priority is claimed only if no other job is due. For place_job and set_priority.';

-- If another session has taken a place of this submitter since, the places are lost, and the submitter's next jobs stand so much later.
CREATE FUNCTION loracomp.return_places(
    base integer, background boolean, priority integer, submitter name, first bigint, last bigint
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    counter CONSTANT regclass := to_regclass(
        loracomp.counter_name(base, background, loracomp.queue_level(priority, background), submitter)
    );
BEGIN
    IF pg_sequence_last_value(counter) = last THEN
        PERFORM setval(counter, first - 1);
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.return_places IS 'Takes back the places of new jobs that are refused, from the first to the last. For admit_jobs.';

-- A job for later gets its place when its time has come.
CREATE FUNCTION loracomp.place_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    new.background := loracomp.is_background(new.kind, new.priority);
    new.scheduled := new.run_at > now();
    new.place := CASE WHEN NOT new.scheduled THEN loracomp.take_place(new, new.priority, new.background) END;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.place_job IS 'Trigger: gives a new job its place in the queue, or notes that it is for later.';

CREATE TRIGGER place_job BEFORE INSERT ON loracomp.job FOR EACH ROW EXECUTE FUNCTION loracomp.place_job();

-- Locks up to batch_size due jobs of a base model, in the order of their places, and skips those that other sessions have locked.
-- A suspect, which is a job whose lease has expired, is claimed in a batch of one (may_run_alone), so that a job that kills its worker
-- affects no other. If it comes first, a worker that holds jobs gets only what stands before it: so its jobs come to their end, and then
-- this or another worker takes the suspect. Returns null if there is no job, and {} if the first must wait until it may run alone.
CREATE FUNCTION loracomp.pick_jobs(
    base_model text, background boolean, batch_size integer, may_run_alone boolean, from_start boolean, kinds text[]
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    base CONSTANT integer := (SELECT b.id FROM loracomp.base_model AS b WHERE b.name = pick_jobs.base_model);
    -- New jobs of the lowest level stand behind all that was ever claimed. It is 0 until a place above 0 was claimed: the first jobs of higher levels
    -- have places below 0.
    claimed CONSTANT bigint := nullif(pg_sequence_last_value(to_regclass(loracomp.counter_name(base, background, 0, ''))), 0);
    first CONSTANT bigint := coalesce(CASE WHEN NOT from_start THEN claimed END, -9223372036854775808);
    suspect record;
    last_place bigint := 9223372036854775807;
    last_id bigint := 9223372036854775807;
    picked bigint[];
    places bigint[];
    levels integer[];
BEGIN
    -- It is locked, so that workers don't wait for one that somebody else keeps locked. Suspects take turns by their places like all other jobs,
    -- however many leases each has cost. Of those with the same place, what has cost the fewest leases comes first: only the index of suspects
    -- has this order, so that a plan that was made for an empty queue uses this index.
    SELECT j.id, j.place INTO suspect FROM loracomp.job AS j
    WHERE j.status = 'queued' AND NOT j.scheduled AND j.expired_leases > 0 AND j.base_model = pick_jobs.base_model
        AND j.background = pick_jobs.background AND j.kind = ANY (kinds) AND pick_jobs.batch_size > 0
    ORDER BY j.place, j.expired_leases, j.id LIMIT 1
    FOR UPDATE SKIP LOCKED;
    IF suspect.id IS NOT NULL AND NOT pick_jobs.may_run_alone THEN
        last_place := suspect.place;
        last_id := suspect.id;
    END IF;
    WITH locked AS MATERIALIZED (
        SELECT j.id, j.place, loracomp.queue_level(j.priority, j.background) AS level FROM loracomp.job AS j
        WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = pick_jobs.base_model
            AND j.background = pick_jobs.background AND j.place >= first AND (j.place, j.id) < (last_place, last_id)
            AND j.expired_leases = 0 AND j.kind = ANY (kinds)
        ORDER BY j.place, j.id LIMIT pick_jobs.batch_size
        FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(l.id), array_agg(l.place), array_agg(l.level) INTO picked, places, levels FROM locked AS l;
    IF suspect.id IS NOT NULL AND (picked IS NULL OR (suspect.place, suspect.id) < (places[1], picked[1])) THEN
        RETURN CASE WHEN pick_jobs.may_run_alone THEN ARRAY[suspect.id] ELSE '{}'::bigint[] END;
    END IF;
    PERFORM setval(c.counter, c.after)
    FROM (
        SELECT
            to_regclass(loracomp.counter_name(base, pick_jobs.background, level, '')) AS counter,
            max(last.place - 1000 * greatest(level - last.level_of_job, 0)) AS after
        FROM (
            SELECT u.level_of_job, max(u.place) AS place FROM unnest(places, levels) AS u (place, level_of_job) GROUP BY u.level_of_job
        ) AS last
        CROSS JOIN generate_series(0, 10) AS level
        GROUP BY level
    ) AS c
    WHERE c.after > pg_sequence_last_value(c.counter);
    RETURN picked;
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters: either everyday jobs or background jobs.';

-- A submitter whose role is gone inserts no more jobs, so its counters are not needed if none of its jobs is waiting or running. The counters of a
-- base model that was deleted are not needed either, because it has no jobs, and those of a limit that holds no longer are used by nobody who can
-- see that. A session that can't, or of a dropped role, may still be open and use a counter; such a counter is left for another call.
CREATE FUNCTION loracomp.drop_counters() RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    prefixes CONSTANT text[] := ARRAY['', 'retries of '] || ARRAY(
        SELECT l.per_submitter || ' jobs of ' FROM loracomp.queue_limit AS l WHERE l.per_submitter IS NOT NULL
    );
    unused regclass[] := ARRAY(
        SELECT c.oid FROM pg_class AS c
        WHERE c.relnamespace = 'loracomp_parts'::regnamespace AND c.relkind = 'S' AND c.relname ~ '^(place|admitted)_'
            AND substring(c.relname, '_([0-9a-f]{32})') NOT IN (
                SELECT md5(p.prefix || r.rolname)
                FROM (SELECT a.rolname FROM pg_roles AS a UNION ALL VALUES ('')) AS r
                CROSS JOIN unnest(prefixes) AS p (prefix)
            )
        ORDER BY random() LIMIT 200 -- so that counters of jobs that wait for long don't keep other counters from being dropped
    );
    counter regclass;
    dropped integer := 0;
BEGIN
    IF unused <> '{}' THEN
        unused := ARRAY(
            SELECT u.counter FROM unnest(unused) AS u (counter) JOIN pg_class AS c ON c.oid = u.counter
            WHERE substring(c.relname, '_([0-9a-f]{32})') NOT IN (
                SELECT md5(p.prefix || j.submitted_by)
                FROM (SELECT DISTINCT w.submitted_by FROM loracomp.job AS w WHERE w.finished_at IS NULL) AS j
                CROSS JOIN unnest(prefixes) AS p (prefix)
            )
        );
    END IF;
    unused := unused || ARRAY(
        SELECT c.oid::regclass FROM pg_class AS c
        WHERE c.relnamespace = 'loracomp_parts'::regnamespace AND c.relkind = 'S' AND c.relname ~ '^place_'
            AND split_part(c.relname, '_', 2) NOT IN (SELECT b.id::text FROM loracomp.base_model AS b)
            AND c.oid <> ALL (unused)
        ORDER BY random() LIMIT 200
    );
    FOREACH counter IN ARRAY unused LOOP
        BEGIN
            EXECUTE format('DROP SEQUENCE %s', counter);
            dropped := dropped + 1;
        EXCEPTION WHEN lock_not_available THEN
            EXIT;
        END;
    END LOOP;
    RETURN dropped;
END
$$;
COMMENT ON FUNCTION loracomp.drop_counters IS
'Drops counters of base models that were deleted, of former limits, and of submitters whose role is gone and who have no jobs left to '
'answer; returns how many, some hundreds at most. For purge_jobs.';
