-- Sets how many candidates a search in the HNSW index keeps (hnsw.ef_search).
--   tune_routing                sets it for every function that searches the index
--     fitting_ef_search         a good value for a number of examples

-- Changes nothing. Measured for k = 30 (docs/scaling.md): a value of 100 finds 99.96 % of the nearest among 100,000 examples, and 250
-- finds 99.3 % among a million.
CREATE FUNCTION loracomp.fitting_ef_search(examples bigint) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN least(1000, greatest(100, round(100 * (examples / 100000.0) ^ 0.4)));
COMMENT ON FUNCTION loracomp.fitting_ef_search IS
'hnsw.ef_search for a number n of examples: 100 up to 100,000, then growing as n to the power 0.4, at most 1,000.';

-- Alters the functions that search the index; does nothing if they already have the right value.
CREATE FUNCTION loracomp.tune_routing() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    fitting CONSTANT integer := (SELECT loracomp.fitting_ef_search(count(*)) FROM loracomp.example_embedding);
    routine regprocedure;
BEGIN
    -- Lock a table, because two calls at once would fail with "tuple concurrently updated". Not an advisory lock, which any
    -- login could hold for ever.
    LOCK TABLE loracomp.sql_object IN SHARE ROW EXCLUSIVE MODE;
    -- Load pgvector first: Postgres lets only superusers set parameters of an extension that is not loaded.
    EXECUTE format('SELECT %L::%s', '[1]', (
        SELECT a.atttypid::regtype FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = 'loracomp.example_embedding'::regclass AND a.attname = 'embedding'
    ));
    FOR routine IN
        SELECT p.oid FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'loracomp'::regnamespace AND p.proconfig::text LIKE '%hnsw.ef_search=%'
            AND NOT p.proconfig @> ARRAY['hnsw.ef_search=' || fitting]
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET hnsw.ef_search = %s', routine, fitting);
    END LOOP;
    RETURN fitting;
END
$$;
COMMENT ON FUNCTION loracomp.tune_routing IS
'Sets hnsw.ef_search of the functions that search the index to a value that fits the number of examples, and returns it. Call '
'it after loading examples.';
-- Functions are created with the value 100, so adjust it now.
SELECT loracomp.tune_routing();
