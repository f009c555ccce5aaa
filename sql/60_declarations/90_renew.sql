-- Declarations outlive an upgrade: their views, triggers and functions are in other schemas. Their functions are made again as this
-- release makes them, and all rows are looked at, because statements may have missed them meanwhile. One that can't be made, such as
-- for an owner whose role was renamed, must not stop the upgrade; ask_rows says what is wrong with it.
DO $$
DECLARE
    d loracomp.declaration;
BEGIN
    FOR d IN SELECT a.* FROM loracomp.declaration AS a WHERE a.source_oid = a.source LOOP
        BEGIN
            PERFORM loracomp.make_parts(d);
        EXCEPTION WHEN OTHERS THEN
            RAISE NOTICE 'the declaration of % is not renewed: %', d.names[1], sqlerrm;
        END;
    END LOOP;
END
$$;
SELECT loracomp.look_at_all(a.id) FROM loracomp.declaration AS a;
