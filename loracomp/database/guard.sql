-- Watches a restore that a superuser runs: `loracomp db restore` runs this before pg_restore, in the empty database, and drops it afterwards.
--
-- A dump contains code of all owners, and whoever restores it runs some of this code. COPY calls the functions in constraints. CREATE TABLE calls
-- immutable functions in generated columns and partition keys, and those of domains in defaults; foreign keys call those of indexes. So a function
-- must be refused before anything that uses it is created. pg_restore gives each object to its owner right after it has created the object, which
-- is the moment to look at it.
CREATE SCHEMA loracomp_restore;
COMMENT ON SCHEMA loracomp_restore IS 'Belongs to a running `loracomp db restore`. If none is running, drop it.';

CREATE TABLE loracomp_restore.trusted (role oid PRIMARY KEY);
COMMENT ON TABLE loracomp_restore.trusted IS 'Roles of --trust, and all superusers.';
INSERT INTO loracomp_restore.trusted SELECT oid FROM pg_catalog.pg_roles WHERE rolsuper;

CREATE FUNCTION loracomp_restore.refuse_code() RETURNS event_trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refused record;
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) THEN
        RETURN; -- somebody else, who can't harm the restore
    END IF;
    -- Such expressions can't call functions of triggers, procedures, aggregates or window functions. Triggers are created after the data are there.
    SELECT p.oid::regprocedure AS name, p.proowner::regrole AS owner INTO refused
    FROM pg_event_trigger_ddl_commands() AS c
    JOIN pg_proc AS p ON c.classid = 'pg_proc'::regclass AND p.oid = c.objid
    WHERE p.proowner NOT IN (SELECT t.role FROM loracomp_restore.trusted AS t)
        AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype
        -- create_answers makes such functions, whose owners can't replace the bodies, unless the schema is theirs too. Being volatile, they are
        -- refused in constraints below.
        AND NOT (p.provolatile = 'v' AND p.prosecdef AND p.pronamespace IN (
            SELECT n.oid FROM pg_namespace AS n
            WHERE n.nspname = 'loracomp_parts' AND n.nspowner IN (SELECT t.role FROM loracomp_restore.trusted AS t)
        ));
    IF FOUND THEN
        RAISE EXCEPTION 'function % belongs to %, who is no superuser', refused.name, refused.owner USING
            ERRCODE = 'insufficient_privilege',
            HINT = format(
                'Constraints and other expressions could call it with a superuser''s rights during the restore. If you trust %1$s, use '
                '--trust %1$s. Otherwise leave the function out with --use-list, as docs/operations.md says.', refused.owner
            );
    END IF;
    -- Built-in functions that change something, or run queries, would do this with a superuser's rights. Those that return xml are said to be
    -- stable, but read views, and so call the views' functions.
    SELECT k.conname AS name, p.oid::regprocedure AS function, o.object_identity AS object, o.owner::regrole AS owner INTO refused
    FROM (
        SELECT c.classid, c.objid, c.object_identity, coalesce(r.relowner, t.typowner) AS owner
        FROM pg_event_trigger_ddl_commands() AS c
        LEFT JOIN pg_class AS r ON c.classid = 'pg_class'::regclass AND r.oid = c.objid
        LEFT JOIN pg_type AS t ON c.classid = 'pg_type'::regclass AND t.oid = c.objid
    ) AS o
    JOIN pg_constraint AS k ON o.objid = CASE o.classid WHEN 'pg_class'::regclass THEN k.conrelid WHEN 'pg_type'::regclass THEN k.contypid END
    CROSS JOIN LATERAL regexp_matches(k.conbin::text, ':(?:funcid|opfuncid) (\d+)', 'g') AS called
    JOIN pg_proc AS p ON p.oid = called[1]::oid
    WHERE o.owner NOT IN (SELECT t.role FROM loracomp_restore.trusted AS t)
        AND (p.provolatile = 'v' OR p.prorettype = 'xml'::regtype);
    IF FOUND THEN
        RAISE EXCEPTION 'constraint % of % calls %, and belongs to %, who is no superuser',
            refused.name, refused.object, refused.function, refused.owner USING
            ERRCODE = 'insufficient_privilege',
            HINT = format(
                'It would call the function with a superuser''s rights. If you trust %1$s, use --trust %1$s. Otherwise leave %2$s out with '
                '--use-list, as docs/operations.md says.', refused.owner, refused.object
            );
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp_restore.refuse_code IS 'Raises if a function or a constraint of a role that is not trusted was just restored.';

CREATE FUNCTION loracomp_restore.refuse_late_constraint() RETURNS event_trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) THEN
        RETURN;
    END IF;
    IF current_query() ~ '\mADD CONSTRAINT .* CHECK \(' AND current_query() !~ '\mNOT (VALID|ENFORCED);\s*$' THEN
        RAISE EXCEPTION 'a constraint would check restored data before its code could be looked at' USING
            ERRCODE = 'insufficient_privilege',
            HINT = 'Leave the constraint out with --use-list, as docs/operations.md says.';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp_restore.refuse_late_constraint IS
'Raises if a CHECK constraint comes after the data, as pg_dump writes it if the constraint refers to a table that refers to the constraint.';

CREATE EVENT TRIGGER loracomp_restore_refuse_late_constraint ON ddl_command_start
WHEN TAG IN ('ALTER TABLE', 'ALTER DOMAIN') EXECUTE FUNCTION loracomp_restore.refuse_late_constraint();
CREATE EVENT TRIGGER loracomp_restore_refuse_code ON ddl_command_end EXECUTE FUNCTION loracomp_restore.refuse_code();
