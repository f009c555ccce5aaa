-- A job's place in the queue: a number that its INSERT writes, by which submitters take turns.
--   take_place                  called by trigger prepare_job
--   pick_jobs                   called by claim_jobs: locks the first jobs of the queue
--     make_counter              the counters of places; take_place and limits call it too
--     counter_name
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

-- Uses a submitter's next place. It is not given back where the INSERT is undone.
CREATE FUNCTION loracomp.take_place(base_model text, background boolean, submitter name) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    claimed CONSTANT bigint := coalesce(
        pg_sequence_last_value(to_regclass(loracomp.counter_name(base_model, background, ''))), 0
    );
    counter CONSTANT regclass := coalesce(
        loracomp.make_counter(loracomp.counter_name(base_model, background, submitter)),
        to_regclass(loracomp.counter_name(base_model, background, '-'))
    );
BEGIN
    IF nextval(counter) > claimed THEN
        RETURN currval(counter);
    END IF;
    RETURN coalesce(setval(counter, claimed + 1), claimed + 1);
END
$$;
COMMENT ON FUNCTION loracomp.take_place IS 'The place of a submitter''s next job. For prepare_job.';

-- Locks up to batch_size due jobs of a base model, in the order of their places, without those that other sessions have locked.
-- A suspect, which is a job whose lease has ever expired, is claimed in a batch of one (may_run_alone), so that a job that kills its
-- worker affects no other. If it comes first, a worker that holds jobs gets only what stands before it: so its jobs come to their end,
-- and then it may take the suspect. With overtake it gets the other jobs all the same, and a worker that holds none gets a suspect only
-- if no other job is due. null: this look found no job; empty: the first must wait until it may run alone.
CREATE FUNCTION loracomp.pick_jobs(
    base_model text, background boolean, batch_size integer, may_run_alone boolean, from_start boolean, overtake boolean
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
    IF suspect.id IS NOT NULL AND NOT pick_jobs.may_run_alone AND NOT pick_jobs.overtake THEN
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
    IF suspect.id IS NOT NULL AND pick_jobs.may_run_alone
        AND (picked IS NULL OR NOT pick_jobs.overtake AND (suspect.place, suspect.id) < (places[1], picked[1])) THEN
        RETURN ARRAY[suspect.id];
    END IF;
    IF places[cardinality(places)] > claimed THEN
        PERFORM setval(head, places[cardinality(places)]);
    END IF;
    RETURN coalesce(picked, CASE WHEN suspect.id IS NOT NULL THEN '{}'::bigint[] END);
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters: those of everyday work, or those in the background. For '
'claim_jobs.';
