-- drop: DROP FUNCTION IF EXISTS loracomp.fitting_ef_search(bigint)
-- Changes nothing. Measured, k = 20: 100 finds 99 % of the nearest among 20,000 examples, 200 finds 98 % among 200,000, 400
-- finds 93 % among a million.
CREATE FUNCTION loracomp.fitting_ef_search(examples bigint) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN least(1000, greatest(100, round(100 * (examples / 20000.0) ^ 0.4)));
COMMENT ON FUNCTION loracomp.fitting_ef_search IS
'hnsw.ef_search for so many examples: 100 up to 20,000, then growing with the power 0.4, at most 1,000.';
