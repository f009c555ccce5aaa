-- The counters of a base model's queues, from which its jobs get their places: 30_queue/18_places.sql explains them.
--   trigger make_levels         makes the levels' own counters for a new base model
--     counter_name

-- The submitter is '' for the level's own counter. null if there is no such base model. With the casts, Postgres puts the body into the caller's
-- expression instead of calling the function, because a number that becomes a text by || is not immutable.
CREATE FUNCTION loracomp.counter_name(base_model_id integer, background boolean, level integer, submitter text)
RETURNS text LANGUAGE sql IMMUTABLE
RETURN 'loracomp_parts.place_' || base_model_id::text || '_' || background::integer::text
    || '_' || level::text || '_' || md5(submitter);
COMMENT ON FUNCTION loracomp.counter_name IS 'Name of the sequence that counts a submitter''s places at a level of a queue.';

-- Without them, whoever comes later would come first. They are made together with the base model, so that every transaction that can insert jobs of
-- the model sees them: make_counter, which makes all others, makes several of one name if transactions don't see each other's.
CREATE FUNCTION loracomp.make_levels() RETURNS trigger
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT loracomp.counter_name(new.id, b.background, l.level, '') AS name, -1000 * l.level AS start
        FROM (VALUES (FALSE), (TRUE)) AS b (background)
        CROSS JOIN generate_series(0, 10) AS l (level)
    LOOP
        EXECUTE format('CREATE SEQUENCE IF NOT EXISTS %s MINVALUE -9223372036854775808', wanted.name);
        PERFORM setval(wanted.name::regclass, wanted.start);
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.make_levels IS 'Trigger: makes the counters of the levels of a new base model''s queues.';

CREATE TRIGGER make_levels AFTER INSERT ON loracomp.base_model FOR EACH ROW EXECUTE FUNCTION loracomp.make_levels();
