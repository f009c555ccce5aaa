-- Declarations survive an upgrade, because their views, triggers and functions are in other schemas. Their parts are made again by this release's
-- functions. A full scan follows once all transactions that run now have ended, because triggers can't note rows during the upgrade. If a
-- declaration can't be renewed, for example because its owner's role was renamed, the upgrade goes on, and ask_rows notes the reason.
DO $$
DECLARE
    d loracomp.declaration;
BEGIN
    FOR d IN SELECT a.* FROM loracomp.declaration AS a LOOP
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
