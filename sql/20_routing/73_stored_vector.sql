-- drop: DROP FUNCTION IF EXISTS loracomp.stored_vector(halfvec)
-- Computes only. Bound when it is created: callers need not know where pgvector is installed.
CREATE FUNCTION loracomp.stored_vector(embedding halfvec) RETURNS vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN embedding::vector;
COMMENT ON FUNCTION loracomp.stored_vector IS 'A stored vector of half precision as one to search with.';
