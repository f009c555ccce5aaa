-- Declarations outlive an upgrade, because their views, triggers and functions are in other schemas. What is made for each is made again as this
-- release makes it, and all rows are scanned once the transactions that run now have ended, because triggers could note nothing meanwhile.
-- A declaration that can't be renewed, such as that of an owner whose role was renamed, must not stop the upgrade; ask_rows says what is
-- wrong with it.
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
INSERT INTO loracomp.scan_request (declaration_id, not_before)
SELECT a.id, pg_current_xact_id()::text::bigint FROM loracomp.declaration AS a;
