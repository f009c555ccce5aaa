-- Estimates how much work a declaration would be, before it is made.
--   estimate_answers
--     check_source        28_check.sql
--     make_parts          20_parts.sql
--     read_rows           22_read.sql
--     estimated_rows      75_list.sql

-- The objects that it makes to read the rows are rolled back, as in try_prompts. It reads up to 10,000 rows for up to two seconds. Of a larger
-- table it reads random pages with about 5,000 rows, and estimates the number of different prompts as ANALYZE estimates a column's number of
-- distinct values (Haas and Stokes 1998, Duj1). How many tokens a text has is not known here; four characters a token are typical of English.
CREATE FUNCTION loracomp.estimate_answers(source regclass, prompt text, filter jsonb DEFAULT '{}')
RETURNS TABLE (
    rows bigint, prompts bigint, refused bigint, too_long bigint, is_estimate boolean, per_minute double precision,
    time_needed interval
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    most CONSTANT integer := 10000;
    end_at CONSTANT timestamptz := clock_timestamp() + interval '2 seconds';
    model CONSTANT loracomp.base_model := (SELECT b FROM loracomp.base_model AS b WHERE b.is_default);
    d loracomp.declaration;
    total bigint;
    keys jsonb;
    page jsonb;
    read integer := 0;
    hashes text[] := '{}';
    passing bigint := 0;
    long bigint := 0;
    once bigint;
    factor double precision := 1;
BEGIN
    d := loracomp.check_source(estimate_answers.source, estimate_answers.prompt, estimate_answers.filter);
    d.id := nextval(pg_get_serial_sequence('loracomp.declaration', 'id'));
    total := loracomp.estimated_rows(d.source);
    BEGIN
        PERFORM loracomp.make_parts(d);
        keys := loracomp.read_as_owner(d, format(
            'SELECT coalesce(jsonb_agg(jsonb_build_object(''key'', r.key)), ''[]'') FROM (SELECT %s AS key FROM %s %s LIMIT %s) AS r',
            loracomp.key_array(d), loracomp.source_sql(d),
            CASE WHEN total >= most THEN format('TABLESAMPLE SYSTEM (%s)', 5000 * 100.0 / total) END, most
        ));
        WHILE read < jsonb_array_length(keys) AND clock_timestamp() < end_at LOOP
            page := loracomp.read_rows(d, jsonb_path_query_array(
                keys, '$[$first to $last]', jsonb_build_object('first', read, 'last', read + 499)
            ));
            read := read + jsonb_array_length(page);
            SELECT passing + count(*), hashes || coalesce(array_agg(md5(f.prompt)) FILTER (WHERE f.prompt IS NOT NULL), '{}'),
                long + count(*) FILTER (WHERE char_length(f.prompt) > 4 * model.context_length)
            INTO passing, hashes, long
            FROM jsonb_to_recordset(page) AS f (passes boolean, prompt text) WHERE f.passes;
        END LOOP;
        RAISE EXCEPTION USING ERRCODE = 'LC001';
    EXCEPTION WHEN SQLSTATE 'LC001' THEN NULL;
    END;
    is_estimate := total >= most OR read < jsonb_array_length(keys) OR read = most;
    IF is_estimate AND read > 0 THEN
        factor := greatest(total, read)::double precision / read;
    END IF;
    rows := round(passing * factor);
    refused := round((passing - cardinality(hashes)) * factor);
    too_long := round(long * factor);
    SELECT count(*), count(*) FILTER (WHERE h.n = 1) INTO prompts, once
    FROM (SELECT count(*) AS n FROM unnest(hashes) AS u (hash) GROUP BY u.hash) AS h;
    IF factor > 1 AND prompts > 0 THEN
        prompts := round(cardinality(hashes) * prompts / (cardinality(hashes) - once + once / factor));
    END IF;
    SELECT 60 * greatest(1, (
        SELECT count(*) FROM loracomp.worker AS w
        WHERE w.base_model = model.name AND w.status IN ('idle', 'busy') AND w.seen_at >= now() - make_interval(secs => w.silent_after_s)
    )) / nullif(avg(loracomp.compute_seconds(p.timings)), 0) INTO per_minute
    FROM (SELECT o.timings, o.base_model FROM loracomp.prediction AS o ORDER BY o.job_id DESC LIMIT 1000) AS p
    WHERE p.base_model = model.name;
    IF per_minute > 0 THEN
        time_needed := interval '1 second' * round(least(60 * (rows - refused) / per_minute, 100 * 365.0 * 86400));
    END IF;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION loracomp.estimate_answers IS
'How many rows a declaration would have, how many different prompts, how many rows would be refused or are probably too long for the base '
'model, and how long their answers would take at the speed of the last 1,000 answers; declares nothing.';
