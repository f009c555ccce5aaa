-- Which answers are certain: those whose confidence is above a threshold that corrected rows have shown to be high enough.
--   thresholds                  for the view's column certain
--     certainty                 what a declaration's corrected rows show; certainty_in_words and is_promise_lost call it too
--       threshold               the lowest confidence above which enough answers are right
--       rows_to_look_at         how many rows are looked at, of so many
--   first_look                  how many rows are needed at least; certainty_in_words calls it
--   is_promise_lost             check_work and database_metrics
--     certainty
--   rows_for_a_person           the other rows

-- Fixed-sequence testing, as in Learn then Test (Angelopoulos and others 2021, arXiv 2110.01052). By the binomial distribution, a share is shown
-- with 95 % probability if no answer is wrong among so many rows, or one among somewhat more, and so on: for a share of 0.95, these are 59, 93,
-- 124, ... rows. These numbers of the most confident rows are tested one after another, beginning with a quarter of all rows, and at last all rows.
-- The first test that fails is the last one, so that only one test can pass by luck alone. The sequence depends on no label. A threshold is
-- the confidence of the next row, so that the rows above it are a random sample of all answers above it.
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
'The confidence above which at least this share of answers is right, with 95 % probability, by answers of which it is known whether they are '
'right, the most confident first; -1 if that holds for all answers, null if for none.';

-- Somebody who looks after each correction, and stops when the answers are certain, would give luck many chances.
CREATE FUNCTION loracomp.rows_to_look_at(rows bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN rows >= 64 THEN (64 * 2 ^ floor(log(2, rows / 64.0)))::bigint ELSE 0 END;
COMMENT ON FUNCTION loracomp.rows_to_look_at IS
'The number of rows on which a threshold is based if there are so many: the largest of 64, 128, 256, ... that is not larger; 0 below 64.';

CREATE FUNCTION loracomp.first_look(share double precision) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN (64 * 2 ^ greatest(0, ceil(log(2, (ln(0.05) / ln(share) / 64)::numeric))))::bigint;
COMMENT ON FUNCTION loracomp.first_look IS
'With fewer rows than this, no threshold can be found for this share: the first of 64, 128, 256, ... rows that would show it if all were right.';

-- Reads only. Answers that people have chosen to correct are mostly wrong ones, so only rows that were drawn at random count. Each has been
-- answered without its own label. A threshold is given up when the latest 64 rows have three standard deviations more wrong answers above it than
-- it promises.
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
'For each setup of a declaration, and for each choice of certain_of: how many rows were drawn, corrected and answered, the threshold, how many of '
'these rows are above it and how many of these are right, whether the latest rows contradict it, and whether the latest answer has this setup.';

CREATE FUNCTION loracomp.is_promise_lost(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT d.certain IS NOT NULL AND EXISTS (SELECT FROM loracomp.certainty(d) AS c WHERE c.is_latest AND c.is_lost);
$$;
COMMENT ON FUNCTION loracomp.is_promise_lost IS 'Whether the latest corrected rows contradict a threshold of a declaration.';

-- The views of declarations call it with their own number.
CREATE OR REPLACE FUNCTION loracomp_parts.thresholds(declaration_id integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT jsonb_object_agg(concat(c.setup, c.choice), c.threshold)
    FROM loracomp.declaration AS d CROSS JOIN LATERAL loracomp.certainty(d) AS c
    WHERE d.id = thresholds.declaration_id AND c.threshold IS NOT NULL AND c.is_lost IS NOT TRUE;
$$;

-- Reads only. A row without an answer has no confidence, so such rows come first. A person must see them, although a refused row can't be corrected.
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
'Rows that are neither certain nor corrected: first those without an answer, then those with the lowest confidence.';
