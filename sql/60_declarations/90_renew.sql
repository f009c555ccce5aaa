-- Declarations survive an upgrade, because their views, triggers and functions are in other schemas. Their parts are made again by this release's
-- functions. A full scan follows, because triggers can't note rows during the upgrade; it waits for the transactions that have written to the table
-- meanwhile and are still open (scan_after). If a declaration can't be renewed, for example because its owner's role was renamed, the upgrade goes
-- on, and ask_rows notes the reason.
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
        PERFORM loracomp.begin_scan(d.id);
    END LOOP;
    UPDATE loracomp.declaration AS a SET scan_after = 0;
END
$$;
