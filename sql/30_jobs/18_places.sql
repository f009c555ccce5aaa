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
-- A job whose lease has ever expired is claimed in a batch of one (may_run_alone), so that a job that kills its worker affects no
-- other: if it comes first, alone; else it is left for a later claim. null: this look found no job; empty: the first must wait
-- until it may run alone.
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
    picked bigint[];
    last_place bigint;
BEGIN
    IF claimed = 0 THEN
        PERFORM loracomp.make_counter(loracomp.counter_name(pick_jobs.base_model, pick_jobs.background, '-'));
    END IF;
    WITH locked AS MATERIALIZED (
        SELECT j.id, j.place, j.expired_leases > 0 AS is_suspect
        FROM loracomp.job AS j
        WHERE j.status = 'queued' AND NOT j.scheduled AND j.base_model = pick_jobs.base_model
            AND j.background = pick_jobs.background AND j.place >= first
        ORDER BY j.place, j.id LIMIT pick_jobs.batch_size
        FOR UPDATE SKIP LOCKED
    ),
    ranked AS (
        SELECT l.*, row_number() OVER () AS number, first_value(l.is_suspect) OVER () AS is_suspect_first FROM locked AS l
    )
    SELECT
        CASE WHEN bool_or(r.is_suspect_first) IS NULL THEN NULL ELSE coalesce(array_agg(r.id) FILTER (
            WHERE CASE WHEN r.is_suspect_first THEN r.number = 1 AND pick_jobs.may_run_alone ELSE NOT r.is_suspect END
        ), '{}') END,
        max(r.place) FILTER (WHERE NOT r.is_suspect)
    INTO picked, last_place
    FROM ranked AS r;
    IF last_place > claimed AND picked <> '{}' THEN
        PERFORM setval(head, last_place);
    END IF;
    RETURN picked;
END
$$;
COMMENT ON FUNCTION loracomp.pick_jobs IS
'Locks up to batch_size due jobs of a base model, fairly among submitters: those of everyday work, or those in the background. For '
'claim_jobs.';
