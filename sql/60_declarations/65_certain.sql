-- Which answers are certain. An answer is certain if its confidence is above a threshold, and corrected rows, which were drawn at random, have shown
-- that enough answers above this threshold are right.
--   thresholds                  the thresholds of a declaration, for its view's column certain
--     certainty                 the thresholds and the numbers of rows behind them; certainty_in_words and is_promise_lost call it too
--       threshold               the lowest confidence above which enough answers are right
--       rows_to_look_at         on how many of the corrected rows a threshold is based
--   first_look                  how many rows must be corrected before there can be a threshold; certainty_in_words calls it
--   is_promise_lost             whether the latest corrections contradict a threshold; check_work and database_metrics call it
--     certainty
--   rows_for_a_person           the rows that are neither certain nor corrected

-- Fixed-sequence testing, as in Learn then Test (Angelopoulos and others 2021, arXiv 2110.01052). By the binomial distribution, a share of 0.95
-- is shown with 95 % probability by 59 rows of which none has a wrong answer, by 93 rows of which one has, by 124 rows of which two have, and so
-- on. Each test takes such a number of the most confident rows. The first test takes at least a quarter of all rows, and the last test takes all
-- rows. Testing stops at the first test that fails, because whoever goes on after a failure finds a test that passes by luck alone. Which tests
-- there are depends on no label. A threshold is the confidence of the next row, so that the rows above it are a random sample of all answers above
-- it.
CREATE FUNCTION loracomp.threshold(confidences double precision[], are_right boolean[], share double precision)
RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    wrong integer := 0;
    -- With m answers of which each is right with probability `share`, the probabilities that exactly and at most `allowed` are wrong.
    allowed integer := 0;
    exactly double precision := 1;
    at_most double precision := 1;
    is_due boolean := FALSE;
    found double precision;
BEGIN
    FOR m IN 1 .. cardinality(confidences) LOOP
        wrong := wrong + (NOT are_right[m])::integer;
        at_most := at_most - (1 - share) * exactly;
        exactly := exactly * share * m / (m - allowed);
        IF at_most <= 0.05 THEN
            is_due := m >= cardinality(confidences) / 4.0;
            exactly := exactly * (m - allowed) / (allowed + 1) * (1 - share) / share;
            at_most := at_most + exactly;
            allowed := allowed + 1;
        END IF;
        IF (is_due OR m = cardinality(confidences) AND allowed > 0) AND confidences[m] IS DISTINCT FROM confidences[m + 1] THEN
            EXIT WHEN wrong >= allowed;
            found := coalesce(confidences[m + 1], -1);
            is_due := FALSE;
        END IF;
    END LOOP;
    RETURN found;
END
$$;
COMMENT ON FUNCTION loracomp.threshold IS
'The confidence above which at least this share of answers is right, with 95 % probability; -1 if that holds for all answers, null if for none. '
'The arrays are about checked answers, the most confident first: how confident each is, and whether it is right.';

-- Between these numbers, corrections don't change a threshold. Otherwise somebody who looks after each correction could stop at a lucky moment.
CREATE FUNCTION loracomp.rows_to_look_at(rows bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN rows >= 64 THEN (64 * 2 ^ floor(log(2, rows / 64.0)))::bigint ELSE 0 END;
COMMENT ON FUNCTION loracomp.rows_to_look_at IS
'On how many of the corrected rows a threshold is based: the largest of 64, 128, 256, ... that is not above their number; 0 if they are fewer than 64.';

CREATE FUNCTION loracomp.first_look(share double precision) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN (64 * 2 ^ greatest(0, ceil(log(2, (ln(0.05) / ln(share) / 64)::numeric))))::bigint;
COMMENT ON FUNCTION loracomp.first_look IS
'How many rows must be corrected before there can be a threshold: the first of 64, 128, 256, ... rows that show this share if all answers are right.';

-- Reads only. Only rows that were drawn at random count, because answers that people choose to correct are mostly wrong. Each of these rows was
-- answered without the help of its own label. A threshold is given up when the latest 64 rows have more wrong answers above it than it promises, by
-- three standard deviations.
CREATE FUNCTION loracomp.certainty(d loracomp.declaration)
RETURNS TABLE (
    setup bigint, choice text, rows bigint, threshold double precision, above bigint, right_above bigint,
    is_lost boolean, is_latest boolean
)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH checked AS MATERIALIZED (
        SELECT
            r.setup, g.choice, r.confidence, r.answer = r.correct AS is_right, r.answered_at,
            row_number() OVER (PARTITION BY r.setup, g.choice ORDER BY r.example_id, r.key) AS ordinal,
            count(*) OVER (PARTITION BY r.setup, g.choice) AS rows
        FROM loracomp.answer_row AS r
        CROSS JOIN LATERAL (SELECT CASE WHEN d.certain_of IS NOT NULL THEN r.answer END AS choice) AS g
        WHERE r.declaration_id = d.id AND r.drawn AND r.example_id IS NOT NULL AND r.status = 'answered' AND r.confidence IS NOT NULL
            AND r.setup IS NOT NULL AND r.job_id > d.stale_to_job AND (d.certain_of IS NULL OR r.answer = ANY (d.certain_of))
    ),
    found AS MATERIALIZED (
        SELECT c.setup, c.choice, loracomp.threshold(
            array_agg(c.confidence ORDER BY c.confidence DESC) FILTER (WHERE c.ordinal <= loracomp.rows_to_look_at(c.rows)),
            array_agg(c.is_right ORDER BY c.confidence DESC) FILTER (WHERE c.ordinal <= loracomp.rows_to_look_at(c.rows)),
            d.certain
        ) AS threshold
        FROM checked AS c GROUP BY c.setup, c.choice
    )
    SELECT
        t.setup, t.choice, t.rows, t.threshold, t.above, t.right_above,
        t.lately - t.right_lately > (1 - d.certain) * t.lately + 3 * sqrt(d.certain * (1 - d.certain) * t.lately),
        t.setup = first_value(t.setup) OVER (ORDER BY t.latest DESC)
    FROM (
        SELECT
            f.setup, f.choice, f.threshold, count(*) AS rows, max(c.answered_at) AS latest,
            count(*) FILTER (WHERE c.confidence > f.threshold) AS above,
            count(*) FILTER (WHERE c.confidence > f.threshold AND c.is_right) AS right_above,
            count(*) FILTER (WHERE c.confidence > f.threshold AND c.ordinal > c.rows - 64) AS lately,
            count(*) FILTER (WHERE c.confidence > f.threshold AND c.ordinal > c.rows - 64 AND c.is_right) AS right_lately
        FROM found AS f JOIN checked AS c ON (c.setup, c.choice) IS NOT DISTINCT FROM (f.setup, f.choice)
        GROUP BY f.setup, f.choice, f.threshold
    ) AS t;
$$;
COMMENT ON FUNCTION loracomp.certainty IS
'A row for each setup of a declaration, and for each choice of certain_of: how many rows were drawn, corrected and answered; the threshold; how many '
'of these rows are above the threshold, and how many of them are right; whether the latest rows contradict it; whether the latest answer has this setup.';

CREATE FUNCTION loracomp.is_promise_lost(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT d.certain IS NOT NULL AND EXISTS (SELECT FROM loracomp.certainty(d) AS c WHERE c.is_latest AND c.is_lost);
$$;
COMMENT ON FUNCTION loracomp.is_promise_lost IS 'Whether the latest corrected rows contradict a threshold of a declaration.';

-- The view of a declaration calls it with the declaration's id.
CREATE OR REPLACE FUNCTION loracomp_parts.thresholds(declaration_id integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT jsonb_object_agg(concat(c.setup, c.choice), c.threshold)
    FROM loracomp.declaration AS d CROSS JOIN LATERAL loracomp.certainty(d) AS c
    WHERE d.id = thresholds.declaration_id AND c.threshold IS NOT NULL AND c.is_lost IS NOT TRUE;
$$;

-- Reads only. Rows without an answer come first, because they have no confidence. Refused rows are among them although they can't be corrected:
-- otherwise no person would notice them.
CREATE FUNCTION loracomp.rows_for_a_person(name regclass, n integer DEFAULT 50)
RETURNS TABLE (
    key text[], prompt text, answer text, confidence double precision, status text, reason text, job_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.find_declaration(rows_for_a_person.name);
BEGIN
    PERFORM loracomp.check_range('n', rows_for_a_person.n, 1, 10000);
    RETURN QUERY EXECUTE format(
        'SELECT
            a.key, (SELECT left(j.prompt, 1000) FROM loracomp.job AS j WHERE j.id = a.job_id), -- it may have been purged
            left(a.answer, 1000), a.confidence, a.status, a.reason, a.job_id
        FROM loracomp_parts.answers_%s AS a
        WHERE a.status IN (''answered'', ''refused'', ''failed'') AND a.correct IS NULL AND a.certain IS NOT TRUE
        ORDER BY a.confidence NULLS FIRST, a.key LIMIT $1',
        d.id
    ) USING rows_for_a_person.n;
END
$$;
COMMENT ON FUNCTION loracomp.rows_for_a_person IS
'Rows that are neither certain nor corrected: first rows without an answer, then the rows with the lowest confidence.';
