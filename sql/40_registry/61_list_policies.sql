-- drop: DROP FUNCTION IF EXISTS loracomp.list_policies(text)
-- Reads policies: one, or all where the name is null.
CREATE FUNCTION loracomp.list_policies(name text DEFAULT NULL) RETURNS SETOF loracomp.policy
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT * FROM loracomp.policy AS p
WHERE p.name = coalesce(list_policies.name, p.name)
ORDER BY p.name <> 'default', p.name;
END;
COMMENT ON FUNCTION loracomp.list_policies IS 'Policies with all their settings, the default first.';
