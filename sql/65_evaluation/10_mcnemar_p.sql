-- drop: DROP FUNCTION IF EXISTS bi.mcnemar_p(bigint, bigint)
-- Computes only: the exact test, whatever the numbers; its work grows with the smaller of the two. Binomial probabilities
-- are summed from their logarithms, which are clamped because exp raises an underflow below -745.
CREATE FUNCTION bi.mcnemar_p(only_a bigint, only_b bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT least(1, 2 * sum(exp(greatest(t.log_p, -700))))
FROM (
    SELECT
        sum(CASE WHEN i.i > 0 THEN ln((only_a + only_b - i.i + 1)::double precision / i.i) ELSE 0 END)
        OVER (ORDER BY i.i)
        - (only_a + only_b) * ln(2::double precision) AS log_p
    FROM generate_series(0, least(only_a, only_b)) AS i (i)
) AS t
-- Its work grows with the smaller of the two, and evaluations have nowhere near as many rows.
WHERE loracomp.check_range('only_a', only_a, 0, 1e6) AND loracomp.check_range('only_b', only_b, 0, 1e6);
END;
COMMENT ON FUNCTION bi.mcnemar_p IS
'P value of McNemar''s exact two-sided test, from the rows that only one of two was right on: how often two equally good '
'ones would differ as much. 1 where they never differ.';
