-- Reads no table. Wilson's score interval is also valid for small n and for shares near 0 and 1; z = 1.959964.
CREATE FUNCTION bi.wilson_interval(hits bigint, n bigint, OUT low double precision, OUT high double precision)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT
    greatest(0, (s.p + s.z2 / (2 * s.n) - s.half) / (1 + s.z2 / s.n)),
    least(1, (s.p + s.z2 / (2 * s.n) + s.half) / (1 + s.z2 / s.n))
FROM (
    SELECT r.n, r.p, r.z2, sqrt(r.z2 * (r.p * (1 - r.p) / r.n + r.z2 / (4 * r.n * r.n))) AS half
    FROM (
        SELECT
            nullif(n, 0)::double precision,
            CASE WHEN loracomp.check_range('hits', hits, 0, n) THEN hits::double precision / nullif(n, 0) END,
            3.841459
    ) AS r (n, p, z2)
) AS s;
END;
COMMENT ON FUNCTION bi.wilson_interval IS '95 % confidence interval of the share hits / n (Wilson''s score interval); 0 to 1 if n is 0.';
