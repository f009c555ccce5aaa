-- drop: DROP FUNCTION IF EXISTS loracomp.embedding_dimensions()
-- Reads from the catalogue how long the vectors of example_embedding are.
CREATE FUNCTION loracomp.embedding_dimensions() RETURNS integer
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT a.atttypmod
FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = 'loracomp.example_embedding'::regclass AND a.attname = 'embedding';
END;
COMMENT ON FUNCTION loracomp.embedding_dimensions IS 'Length of the vectors that example_embedding holds.';
