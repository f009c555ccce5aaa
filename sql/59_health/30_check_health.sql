-- drop: DROP FUNCTION IF EXISTS loracomp.check_health()
-- Reads only: what an administrator should know before trusting this database; `loracomp doctor` prints it.
CREATE FUNCTION loracomp.check_health()
RETURNS TABLE ("check" text, status text, detail text)
-- VOLATILE, so that what an installer did while we waited for it is seen.
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    -- One statement finds all checks before it runs the first. Had that one to wait for an installer, the others would
    -- be gone: "cache lookup failed". So we wait before, and installers wait for us after.
    LOCK TABLE loracomp.job IN ACCESS SHARE MODE;
    RETURN QUERY
    SELECT * FROM loracomp.check_objects()
    UNION ALL
    SELECT * FROM loracomp.check_server()
    UNION ALL
    SELECT * FROM loracomp.check_roles()
    UNION ALL
    SELECT * FROM loracomp.check_registry()
    UNION ALL
    SELECT * FROM loracomp.check_queue();
END
$$;
COMMENT ON FUNCTION loracomp.check_health IS
'What an administrator should know: each check with ok, warn or fail, and what to do.';
