-- Small functions that compute on values and read no table.
--   check_range         raises if an argument is out of range
--   check_wait          raises if a function can't wait in this transaction, or not for so long
--   composition_text    a composition in short: rte 0.62 + mnli 0.38
--   shorten             a text on one line, cut to a length
--   seconds_between     seconds between two times
--   compute_seconds     a job's share of the seconds of computing
--   confidence          the best choice's probability
--   did_you_mean        suggests names that resemble a name that was not found

-- Changes nothing. NaN is out of every range; null passes, and the caller must check it.
CREATE FUNCTION loracomp.check_range(
    argument text, given double precision, low double precision, high double precision
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF (given BETWEEN low AND high) IS NOT TRUE THEN -- also if it is null, which would mean no limit
        RAISE EXCEPTION '% must be between % and %, and is %', argument, low, high, given
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION loracomp.check_range IS 'True if a value is in a range; otherwise, also for null, raises an error that names the argument.';

-- Reads no table. The statement's snapshot stays open during the wait and keeps vacuum from removing dead tuples, so the wait is limited.
CREATE FUNCTION loracomp.check_wait(timeout interval) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- IS NOT TRUE, because otherwise a null timeout would pass and the wait would never end.
    IF (extract(EPOCH FROM check_wait.timeout) BETWEEN 0 AND 300) IS NOT TRUE THEN
        RAISE EXCEPTION 'timeout must be between 0 and 5 minutes, and is %', check_wait.timeout
            USING ERRCODE = 'invalid_parameter_value',
                HINT = 'to wait longer, call it again: a long statement keeps dead tuples from being removed';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a transaction with isolation level % can''t see what others commit while it waits',
            current_setting('transaction_isolation')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'wait with isolation level read committed';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.check_wait IS
'Raises unless a timeout is at most five minutes, and the transaction sees what others commit meanwhile.';

-- Reads no table. The adapter with the largest weight comes first; null if there are no adapters.
CREATE FUNCTION loracomp.composition_text(tasks text[], weights double precision[])
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT string_agg(c.task || to_char(c.weight, ' FM990.00'), ' + ' ORDER BY c.weight DESC, c.task)
FROM unnest(tasks, weights) AS c (task, weight);
END;
COMMENT ON FUNCTION loracomp.composition_text IS 'Short text for a composition, with task and weight of each adapter, such as rte 0.62 + mnli 0.38.';

-- Reads no table.
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
COMMENT ON FUNCTION loracomp.shorten IS 'The text on one line, cut to at most the given number of characters.';

-- Reads no table.
CREATE FUNCTION loracomp.seconds_between(earlier timestamp with time zone, later timestamp with time zone)
RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT round(extract(EPOCH FROM later - earlier), 3)::double precision;
END;
COMMENT ON FUNCTION loracomp.seconds_between IS 'Seconds between two times, rounded to milliseconds.';

-- Reads no table. Null if the worker recorded no share.
CREATE FUNCTION loracomp.compute_seconds(timings jsonb) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT (timings ->> 'share')::double precision / 1000;
END;
COMMENT ON FUNCTION loracomp.compute_seconds IS
'A job''s share of the seconds that its worker computed for it and for others, from the timings of its answer.';

-- Reads no table. The exponent is clamped, because exp raises an underflow error below -745.
CREATE FUNCTION loracomp.confidence(choice_scores double precision[]) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT 1 / sum(exp(greatest(s.score - s.best, -700)))
FROM (SELECT u.score, max(u.score) OVER () AS best FROM unnest(choice_scores) AS u (score)) AS s;
END;
COMMENT ON FUNCTION loracomp.confidence IS
'Probability of the best choice by softmax over the log-likelihoods; null if there are none.';

-- Reads no table. The similarity of two names is the share of letter pairs that both contain (Dice's coefficient). A name of four letters
-- with one wrong letter is still found.
CREATE FUNCTION loracomp.did_you_mean(wanted text, names text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
WITH pair AS (
    SELECT DISTINCT u.name, substr(' ' || lower(left(u.name, 100)) || ' ', p.start, 2) AS letters
    FROM unnest(array_append(names, wanted)) AS u (name)
    CROSS JOIN generate_series(1, char_length(left(u.name, 100)) + 1) AS p (start)
),
likeness AS (
    SELECT
        p.name, 2.0 * count(w.letters) / (count(*) + (SELECT count(*) FROM pair AS o WHERE o.name = wanted)) AS likeness
    FROM pair AS p LEFT JOIN pair AS w ON w.name = wanted AND p.letters = w.letters
    WHERE p.name <> wanted
    GROUP BY p.name
)
SELECT ' (did you mean ' || string_agg(l.name, ' or ' ORDER BY l.name) || '?)'
FROM likeness AS l
WHERE l.likeness >= 0.5 AND l.likeness = (SELECT max(m.likeness) FROM likeness AS m);
END;
COMMENT ON FUNCTION loracomp.did_you_mean IS
'Suggests the names that are most similar to the wanted one, as in (did you mean rte?); null if none is similar.';
