-- A job's place in the queue: a number by which submitters take turns.
--   trigger place_job           gives a new job its place
--   take_place                  gives one; wake_jobs, retry_job and set_priority call it too
--   pick_jobs                   called by claim_jobs: locks the first jobs of the queue
--     make_counter              the counters of places; take_place and limits call it too
--     counter_name
--
-- Only a function that queues or moves a job gives it a place: place_job a new one, wake_jobs one that waited for its time, and retry_job
-- one that had ended. fail_jobs and rescue_jobs leave it to wake_jobs: they mark the job as scheduled.
--
-- Each submitter's jobs have places one after the other. The first comes right after the last place that was claimed of anybody's,
-- so a job is claimed after as many turns as its submitter has jobs before it, and no later job can hold it up for ever. This is fair
-- queueing by virtual start times. Counters are sequences: they take no lock that lasts, and leave no dead rows.

-- Two counters are nobody's: that of an empty name holds the last claimed place, and that of '-' counts for those whose own can't be made
-- at the moment. null: there is no such base model.
CREATE FUNCTION loracomp.counter_name(base_model text, background boolean, submitter name) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT format('loracomp_parts.place_%s_%s_%s', b.id, background::integer, md5(submitter))
    FROM loracomp.base_model AS b WHERE b.name = base_model
);
COMMENT ON FUNCTION loracomp.counter_name IS 'Name of the sequence that counts a submitter''s places for a base model.';

-- Makes the sequence if there is none. It waits for nobody: null if another session is just making it.
CREATE FUNCTION loracomp.make_counter(name text) RETURNS regclass
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF to_regclass(name) IS NULL AND pg_try_advisory_xact_lock(hashtextextended(name, 0)) THEN
        EXECUTE format('CREATE SEQUENCE IF NOT EXISTS %s MINVALUE -9223372036854775808 START 0', name);
    END IF;
    RETURN to_regclass(name);
END
$$;
COMMENT ON FUNCTION loracomp.make_counter IS 'The sequence of this name, made if it is missing. For take_place, pick_jobs and limits.';

-- Uses a submitter's next place. It is not given back where the INSERT is undone. What was tried before has had its turn: a submitter's
-- retries take turns as if they were another's, so that they neither wait for all of his new jobs nor come before everybody's. A suspect,
-- which is a job whose lease has expired, will be claimed alone. So it costs a worker about as much as all the jobs that one can hold, and
-- uses as many places.
CREATE FUNCTION loracomp.take_place(job loracomp.job, background boolean) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    is_suspect CONSTANT boolean := job.expired_leases > 0;
    claimed CONSTANT bigint := coalesce(
        pg_sequence_last_value(to_regclass(loracomp.counter_name(job.base_model, background, ''))), 0
    );
    counter CONSTANT regclass := coalesce(
        loracomp.make_counter(loracomp.counter_name(
            job.base_model, background,
            (CASE WHEN is_suspect OR job.attempts > 0 THEN 'retries of ' ELSE '' END || job.submitted_by)::name
        )),
        to_regclass(loracomp.counter_name(job.base_model, background, '-'))
    );
    place bigint := coalesce(nextval(counter), 0);
BEGIN
    IF place <= claimed THEN
        place := claimed + 1;
        PERFORM setval(counter, place);
    END IF;
    IF is_suspect THEN
        PERFORM setval(counter, place + 63);
    END IF;
    RETURN place - 1000::bigint * job.priority;
END
$$;
COMMENT ON FUNCTION loracomp.take_place IS
'The place that a job gets in the queue now: in the background, or among everyday work. For place_job, wake_jobs, retry_job and set_priority.';

-- A job for later gets its place when its time has come.
CREATE FUNCTION loracomp.place_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    new.background := new.kind = 'measure' OR new.priority < 0;
    new.scheduled := new.run_at > now();
    new.place := CASE WHEN NOT new.scheduled THEN loracomp.take_place(new, new.background) END;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.place_job IS 'Trigger: gives a new job its place in the queue, or notes that it is for later.';

CREATE TRIGGER place_job BEFORE INSERT ON loracomp.job FOR EACH ROW EXECUTE FUNCTION loracomp.place_job();

-- Locks up to batch_size due jobs of a base model, in the order of their places, without those that other sessions have locked.
-- A suspect, which is a job whose lease has expired, is claimed in a batch of one (may_run_alone), so that a job that kills its worker
-- affects no other. If it comes first, a worker that holds jobs gets only what stands before it: so its jobs come to their end, and then
-- it, or another worker, takes the suspect. null: there is no job; empty: the first must wait until it may run alone.
CREATE FUNCTION loracomp.pick_jobs(
    base_model text, background boolean, batch_size integer, may_run_alone boolean, from_start boolean
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    head CONSTANT regclass := loracomp.make_counter(loracomp.counter_name(pick_jobs.base_model, pick_jobs.background, ''));
    claimed CONSTANT bigint := coalesce(pg_sequence_last_value(head), 0);
    first CONSTANT bigint := CASE WHEN pick_jobs.from_start THEN -9223372036854775808 ELSE claimed END;
    suspect record;
    last_place bigint := 9223372036854775807;
    last_id bigint := 9223372036854775807;
    picked bigint[];
    places bigint[];
BEGIN
    IF claimed = 0 THEN
        PERFORM loracomp.make_counter(loracomp.counter_name(pick_jobs.base_model, pick_jobs.background, '-'));
    END IF;
    -- It is locked, so that workers don't wait for one that somebody else keeps locked. What has cost the fewest leases comes first: only
    -- the index of suspects has this order, and a plan that was made for an empty queue can't use another.
    SELECT j.id, j.place INTO suspect FROM loracomp.job AS j
    WHERE j.status = 'queued' AND NOT j.scheduled AND j.expired_leases > 0 AND j.base_model = pick_jobs.base_model
        AND j.background = pick_jobs.background AND pick_jobs.batch_size > 0
    ORDER BY j.expired_leases, j.place, j.id LIMIT 1
    FOR UPDATE SKIP LOCKED;
    IF suspect.id IS NOT NULL AND NOT pick_jobs.may_run_alone THEN
        last_place := suspect.place;
        last_id := suspect.id;
    END IF;
    WITH locked AS MATERIALIZED (
        SELECT j.id, j.place FROM loracomp.job AS j
        WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = pick_jobs.base_model
            AND j.background = pick_jobs.background AND j.place >= first AND (j.place, j.id) < (last_place, last_id)
            AND j.expired_leases = 0
        ORDER BY j.place, j.id LIMIT pick_jobs.batch_size
        FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(l.id), array_agg(l.place) INTO picked, places FROM locked AS l;
    IF suspect.id IS NOT NULL AND (picked IS NULL OR (suspect.place, suspect.id) < (places[1], picked[1])) THEN
        RETURN CASE WHEN pick_jobs.may_run_alone THEN ARRAY[suspect.id] ELSE '{}'::bigint[] END;
    END IF;
    IF places[cardinality(places)] > claimed THEN
        PERFORM setval(head, places[cardinality(places)]);
    END IF;
    RETURN picked;
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters: those of everyday work, or those in the background. For '
'claim_jobs.';
