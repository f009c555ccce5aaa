-- drop: DROP FUNCTION IF EXISTS loracomp.reader()
-- Computes only. For row security alone, and immutable on purpose: Postgres plans for each role anew what row security touches,
-- so that the name is worked out once a plan. That leaves policies the cheapest comparison there can be. Any built-in one of
-- a reader's own that were cheaper would come first, and fetch others' texts or not: EXPLAIN (ANALYZE, BUFFERS) counts that.
CREATE FUNCTION loracomp.reader() RETURNS name
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN current_user;
COMMENT ON FUNCTION loracomp.reader IS 'Who reads, in policies of row security; for nothing else.';
