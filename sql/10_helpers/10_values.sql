-- Small functions of values. None reads a table.
--   check_range         raises where an argument is out of range
--   composition_text    a composition in short: rte 0.62 + mnli 0.38
--   shorten             a text on one line, cut
--   seconds_between     from one time to another
--   compute_seconds     a job's part of its batch's work
--   confidence          the best choice's share
--   log_share           log softmax of scores, at one place
--     confidence

-- Changes nothing. NaN is beyond every range; null is left to whoever asks.
CREATE FUNCTION loracomp.check_range(
    argument text, given double precision, low double precision, high double precision
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF given NOT BETWEEN low AND high THEN
        RAISE EXCEPTION '% must be between % and %, and is %', argument, low, high, given
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_range IS 'True; raises, naming the argument, where its value is outside of a range.';

-- Computes only. Heaviest first; null where there are no adapters.
CREATE FUNCTION loracomp.composition_text(tasks text[], weights double precision[])
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT string_agg(c.task || to_char(c.weight, ' FM990.00'), ' + ' ORDER BY c.weight DESC, c.task)
FROM unnest(tasks, weights) AS c (task, weight);
END;
COMMENT ON FUNCTION loracomp.composition_text IS 'A composition in short, such as rte 0.62 + mnli 0.38.';

-- Computes only.
CREATE FUNCTION loracomp.shorten(value text, length integer)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT CASE WHEN char_length(s.line) <= length THEN s.line ELSE rtrim(left(s.line, length - 1)) || '…' END
FROM (
    SELECT btrim(
        regexp_replace(left(value, length * 4) COLLATE "C", '[' || loracomp.white_space() || ']+', ' ', 'g')
    ) AS line
) AS s;
END;
COMMENT ON FUNCTION loracomp.shorten IS 'A text on one line of at most so many characters.';

-- Computes only.
CREATE FUNCTION loracomp.seconds_between(earlier timestamp with time zone, later timestamp with time zone)
RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT round(extract(EPOCH FROM later - earlier), 3)::double precision;
END;
COMMENT ON FUNCTION loracomp.seconds_between IS 'Seconds from one time to another, to the millisecond.';

-- Computes only. What waited for the device or the database is no work on the job.
CREATE FUNCTION loracomp.compute_seconds(timings jsonb, batch_size integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT (
    (timings ->> 'encode')::double precision + (timings ->> 'route')::double precision
    + coalesce((timings ->> 'load')::double precision, 0)
    + coalesce((timings ->> 'compose')::double precision, 0)
    + (timings ->> 'predict')::double precision
) / 1000 / batch_size;
END;
COMMENT ON FUNCTION loracomp.compute_seconds IS
'A job''s part of the seconds that its batch took from encoding to prediction, from the timings of its trace.';

-- Computes only. exp raises an underflow below -745, so the exponent is clamped.
CREATE FUNCTION loracomp.confidence(choice_scores double precision[]) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT 1 / sum(exp(greatest(s.score - s.best, -700)))
FROM (SELECT u.score, max(u.score) OVER () AS best FROM unnest(choice_scores) AS u (score)) AS s;
END;
COMMENT ON FUNCTION loracomp.confidence IS
'Share of the best choice in the softmax over log-likelihoods; null where there are none.';

-- Computes only.
CREATE FUNCTION loracomp.log_share(scores double precision[], place integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT scores[place] - max(u.score) + ln(loracomp.confidence(scores)) FROM unnest(scores) AS u (score);
END;
COMMENT ON FUNCTION loracomp.log_share IS 'Logarithm of one score''s share in the softmax over all of them.';
