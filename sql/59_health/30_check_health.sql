-- drop: DROP FUNCTION IF EXISTS loracomp.check_health()
-- Reads only: what an administrator should know before trusting this database; `loracomp doctor` prints it.
CREATE FUNCTION loracomp.check_health()
RETURNS TABLE ("check" text, status text, detail text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT * FROM loracomp.check_objects()
    UNION ALL
    SELECT * FROM loracomp.check_server()
    UNION ALL
    SELECT * FROM loracomp.check_roles()
    UNION ALL
    SELECT * FROM loracomp.check_registry()
    UNION ALL
    SELECT * FROM loracomp.check_queue()
$$;
COMMENT ON FUNCTION loracomp.check_health IS
'What an administrator should know: each check with ok, warn or fail, and what to do.';
