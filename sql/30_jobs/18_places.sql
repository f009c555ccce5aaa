-- A job's place in the queue: a number that its INSERT writes, by which submitters take turns.
--   take_place                  called by trigger fill_job
--   pick_jobs                   called by claim_jobs: locks the first jobs of the queue
--     make_counter              the counters of places; take_place calls it too
--       find_counter
--
-- Each submitter's jobs have places one after the other. The first comes right after the last place that was claimed of anybody's,
-- so a job is claimed after as many turns as its submitter has jobs before it, and no later job can hold it up for ever. This is fair
-- queueing by virtual start times. Counters are sequences: they take no lock that lasts, and leave no dead rows.

-- The sequence that counts a submitter's places. Two are nobody's: that of an empty name holds the last claimed place, and that of
-- '-' counts for those whose own can't be made at the moment. null: it does not exist yet.
CREATE FUNCTION loracomp.find_counter(
    base_model text, background boolean, submitter name, OUT name text, OUT counter regclass
)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
BEGIN ATOMIC
    SELECT n.name, to_regclass(n.name)
    FROM (
        SELECT format(
            'loracomp_parts.place_%s_%s_%s', b.id, find_counter.background::integer, md5(find_counter.submitter)
        ) AS name
        FROM loracomp.base_model AS b WHERE b.name = find_counter.base_model
    ) AS n;
END;
COMMENT ON FUNCTION loracomp.find_counter IS
'Sequence that counts a submitter''s places for a base model, with its name; an empty name: the last claimed place. For make_counter.';

-- As find_counter, but makes the sequence if there is none. It waits for nobody: null if another session is just making it.
CREATE FUNCTION loracomp.make_counter(base_model text, background boolean, submitter name) RETURNS regclass
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    known record;
BEGIN
    -- Not an assignment, because a base model that is not registered has no row, and `known` would have no columns.
    SELECT c.counter, c.name INTO known
    FROM loracomp.find_counter(make_counter.base_model, make_counter.background, make_counter.submitter) AS c;
    IF known.counter IS NULL AND pg_try_advisory_xact_lock(hashtextextended(known.name, 0)) THEN
        EXECUTE format('CREATE SEQUENCE IF NOT EXISTS %s MINVALUE 0', known.name);
    END IF;
    RETURN coalesce(known.counter, to_regclass(known.name));
END
$$;
COMMENT ON FUNCTION loracomp.make_counter IS
'Sequence that counts a submitter''s places for a base model, made if it is missing. For take_place and pick_jobs.';

-- Uses a submitter's next place. It is not given back where the INSERT is undone.
CREATE FUNCTION loracomp.take_place(base_model text, background boolean, submitter name) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    claimed CONSTANT bigint := coalesce(pg_sequence_last_value(
        (loracomp.find_counter(take_place.base_model, take_place.background, '')).counter
    ), 0);
    counter CONSTANT regclass := coalesce(
        loracomp.make_counter(take_place.base_model, take_place.background, take_place.submitter),
        (loracomp.find_counter(take_place.base_model, take_place.background, '-')).counter
    );
BEGIN
    IF nextval(counter) > claimed THEN
        RETURN currval(counter);
    END IF;
    RETURN coalesce(setval(counter, claimed + 1), claimed + 1);
END
$$;
COMMENT ON FUNCTION loracomp.take_place IS 'The place of a submitter''s next job. For fill_job.';

-- Locks up to batch_size due jobs of a base model, in the order of their places, without those that other sessions have locked.
-- A job whose lease has ever expired is claimed in a batch of one (may_run_alone), so that a job that kills its worker affects no
-- other: if it comes first, alone; else it is left for a later claim. null: no job waits; empty: the first must wait until it may
-- run alone.
CREATE FUNCTION loracomp.pick_jobs(
    base_model text, background boolean, batch_size integer, may_run_alone boolean, whole boolean
) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    head CONSTANT regclass := loracomp.make_counter(pick_jobs.base_model, pick_jobs.background, '');
    claimed CONSTANT bigint := coalesce(pg_sequence_last_value(head), 0);
    first CONSTANT bigint := CASE WHEN pick_jobs.whole THEN -9223372036854775808 ELSE claimed END;
    picked bigint[];
    last_place bigint;
BEGIN
    IF claimed = 0 THEN
        PERFORM loracomp.make_counter(pick_jobs.base_model, pick_jobs.background, '-');
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
