-- How widely the HNSW index is searched.
--   tune_routing                sets hnsw.ef_search of every function that searches it
--     fitting_ef_search         by the number of examples

-- Changes nothing. Measured, k = 20: 100 finds 99 % of the nearest among 20,000 examples, 200 finds 98 % among 200,000, 400
-- finds 93 % among a million.
CREATE FUNCTION loracomp.fitting_ef_search(examples bigint) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN least(1000, greatest(100, round(100 * (examples / 20000.0) ^ 0.4)));
COMMENT ON FUNCTION loracomp.fitting_ef_search IS
'hnsw.ef_search for so many examples: 100 up to 20,000, then growing with the power 0.4, at most 1,000.';

-- Alters the functions that search the index, and writes an event; does nothing where they already have the setting that fits.
CREATE FUNCTION loracomp.tune_routing() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    fitting CONSTANT integer := (SELECT loracomp.fitting_ef_search(count(*)) FROM loracomp.example_embedding);
    routine regprocedure;
    altered boolean := false;
BEGIN
    -- Two at once would meet as "tuple concurrently updated". Not an advisory lock, which any login may hold.
    LOCK TABLE loracomp.sql_object IN SHARE ROW EXCLUSIVE MODE;
    -- Until pgvector is loaded its settings are unknown, and refused to all but superusers.
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
        altered := true;
    END LOOP;
    IF altered THEN
        INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason, after)
        VALUES (
            loracomp.caller(), 'setting', 'hnsw.ef_search', 'update', 'tune_routing', jsonb_build_object('value', fitting)
        );
    END IF;
    RETURN fitting;
END
$$;
COMMENT ON FUNCTION loracomp.tune_routing IS
'Sets hnsw.ef_search of the functions that search the index by the number of examples, and returns it. Call it after '
'loading examples.';
-- Functions that were just created start with 100.
SELECT loracomp.tune_routing();
