-- Which answers are certain. An answer is certain if its confidence is above a threshold, and corrected rows, which were drawn at random, have shown
-- that enough answers above this threshold are right.
--   thresholds                  the thresholds of a declaration, for its view's column certain
--     certainty                 the thresholds and the numbers of rows behind them; certainty_in_words and lost_promises call it too
--       threshold               the lowest confidence above which enough answers are right
--       rows_to_look_at         on how many of the corrected rows a threshold is based
--   first_look                  how many rows must be corrected before there can be a threshold; certainty_in_words calls it
--   lost_promises               declarations of which the latest corrections contradict a threshold; check_work and database_metrics call it
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

-- Reads only the latest 8,192 rows that were drawn, so that its time is bounded. Only rows that were drawn at random count, because answers that
-- people choose to correct are mostly wrong. The first rows of the draw are looked at, whichever were corrected first: otherwise people could
-- choose the sample. Each of these rows was answered without the help of its own label. A row that was drawn and not corrected counts as answered
-- wrongly, because people may leave out hard rows. It counts in each setup, because its next answer may have any setup. A threshold is given up
-- when the latest 64 corrected rows have more wrong answers above it than it promises, by three standard deviations.
CREATE FUNCTION loracomp.certainty(d loracomp.declaration)
RETURNS TABLE (
    setup bigint, choice text, rows bigint, left_out bigint, threshold double precision, above bigint,
    right_above bigint, is_lost boolean, is_main boolean
)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH drawn AS MATERIALIZED (
        SELECT r.* FROM loracomp.answer_row AS r WHERE r.declaration_id = d.id AND r.draw_number IS NOT NULL ORDER BY r.draw_number DESC LIMIT 8192
    ),
    answered AS MATERIALIZED (
        SELECT
            r.setup, CASE WHEN d.certain_of IS NOT NULL THEN r.answer END AS choice, r.confidence, r.example_id IS NOT NULL AS is_corrected,
            coalesce(r.answer = r.correct, FALSE) AS is_right, r.answered_at, r.draw_number
        FROM drawn AS r
        WHERE r.status = 'answered' AND r.confidence IS NOT NULL AND r.job_id > d.stale_to_job
            AND (d.certain_of IS NULL OR r.answer = ANY (d.certain_of))
    ),
    corrected AS MATERIALIZED (
        SELECT
            a.setup, a.choice, count(*) AS rows, loracomp.rows_to_look_at(count(*)) AS looked_at, max(a.answered_at) AS latest,
            sum(count(*)) OVER (PARTITION BY a.setup) AS of_setup
        FROM answered AS a WHERE a.is_corrected AND a.setup IS NOT NULL GROUP BY a.setup, a.choice
    ),
    ordered AS MATERIALIZED (
        SELECT
            c.setup, c.choice, a.confidence, a.is_corrected, a.is_right,
            row_number() OVER w <= c.looked_at AS is_looked_at,
            a.is_corrected AND c.rows - count(*) FILTER (WHERE a.is_corrected) OVER w < 64 AS is_late
        FROM corrected AS c
        JOIN answered AS a ON a.choice IS NOT DISTINCT FROM c.choice AND (a.setup = c.setup OR NOT a.is_corrected)
        WHERE c.looked_at > 0
        WINDOW w AS (PARTITION BY c.setup, c.choice ORDER BY a.draw_number ROWS UNBOUNDED PRECEDING)
    ),
    found AS MATERIALIZED (
        SELECT
            o.setup, o.choice, count(*) FILTER (WHERE NOT o.is_corrected) AS left_out,
            loracomp.threshold(
                array_agg(o.confidence ORDER BY o.confidence DESC), array_agg(o.is_right ORDER BY o.confidence DESC), d.certain
            ) AS threshold
        FROM ordered AS o WHERE o.is_looked_at GROUP BY o.setup, o.choice
    )
    SELECT
        c.setup, c.choice, c.rows, f.left_out, f.threshold, t.above, t.right_above,
        t.lately - t.right_lately > (1 - d.certain) * t.lately + 3 * sqrt(d.certain * (1 - d.certain) * t.lately),
        c.setup = first_value(c.setup) OVER (ORDER BY c.of_setup DESC, c.latest DESC)
    FROM corrected AS c
    LEFT JOIN found AS f ON f.setup = c.setup AND f.choice IS NOT DISTINCT FROM c.choice
    LEFT JOIN (
        SELECT
            o.setup, o.choice, count(*) FILTER (WHERE o.is_corrected) AS above, count(*) FILTER (WHERE o.is_right) AS right_above,
            count(*) FILTER (WHERE o.is_late) AS lately, count(*) FILTER (WHERE o.is_late AND o.is_right) AS right_lately
        FROM ordered AS o JOIN found AS f ON f.setup = o.setup AND f.choice IS NOT DISTINCT FROM o.choice
        WHERE o.confidence > f.threshold GROUP BY o.setup, o.choice
    ) AS t ON t.setup = c.setup AND t.choice IS NOT DISTINCT FROM c.choice;
$$;
COMMENT ON FUNCTION loracomp.certainty IS
'For each setup of a declaration, and for each choice of certain_of: how many rows were drawn, corrected and answered, how many of the rows that '
'are looked at are not corrected, the threshold, how many corrected rows are above it and how many of these are right, whether the latest rows '
'contradict it, and whether most of the corrected rows have this setup.';

-- Reads only. Anybody may have many declarations, so it looks at some of them, drawn at random, for about half a second.
CREATE FUNCTION loracomp.lost_promises() RETURNS integer[]
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    end_at CONSTANT timestamptz := clock_timestamp() + interval '0.5 seconds';
    d loracomp.declaration;
    lost integer[] := '{}';
BEGIN
    FOR d IN SELECT a.* FROM loracomp.declaration AS a WHERE a.certain IS NOT NULL ORDER BY random() LOOP
        EXIT WHEN clock_timestamp() > end_at;
        IF EXISTS (SELECT FROM loracomp.certainty(d) AS c WHERE c.is_main AND c.is_lost) THEN
            lost := lost || d.id;
        END IF;
    END LOOP;
    RETURN lost;
END
$$;
COMMENT ON FUNCTION loracomp.lost_promises IS 'Declarations whose latest corrected rows contradict a threshold.';

-- The view of a declaration calls it with the declaration's id. extra_float_digits is fixed, because thresholds are written as text.
CREATE OR REPLACE FUNCTION loracomp_parts.thresholds(declaration_id integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET extra_float_digits = 1
AS $$
    SELECT jsonb_object_agg(concat(c.setup, ' ', u.choice), c.threshold)
    FROM loracomp.declaration AS d
    CROSS JOIN LATERAL loracomp.certainty(d) AS c
    CROSS JOIN LATERAL unnest(CASE WHEN c.choice IS NULL THEN d.choices ELSE ARRAY[c.choice] END) AS u (choice)
    WHERE d.id = thresholds.declaration_id AND d.certain IS NOT NULL AND c.threshold IS NOT NULL AND c.is_lost IS NOT TRUE;
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
    IF NOT found AND EXISTS (SELECT FROM loracomp.answer_row AS r WHERE r.declaration_id = d.id AND r.status = 'waiting') THEN
        RAISE NOTICE 'rows wait for their answers, and may need a person then';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.rows_for_a_person IS
'Rows that are neither certain nor corrected: first rows without an answer, then the rows with the lowest confidence.';
