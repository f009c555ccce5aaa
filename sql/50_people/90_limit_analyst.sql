-- Changes settings of a login, for all databases of the server. The caller needs CREATEROLE and ADMIN on the login, or must be
-- a superuser. The group role can't have the settings instead, because a session uses only its login's.
CREATE FUNCTION loracomp.limit_analyst(
    login name, connections integer DEFAULT 10, statement_timeout text DEFAULT '60s'
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    setting record;
BEGIN
    IF num_nulls(login, connections, limit_analyst.statement_timeout) > 0 THEN
        RAISE EXCEPTION '% must not be null', CASE
            WHEN login IS NULL THEN 'login' WHEN connections IS NULL THEN 'connections' ELSE 'statement_timeout'
        END USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- -1 means no limit, as in Postgres.
    PERFORM loracomp.check_range('connections', connections, -1, 2147483647);
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r
        WHERE r.rolname = limit_analyst.login AND r.rolcanlogin AND NOT r.rolsuper
            AND pg_has_role(r.oid, to_regrole('loracomp_analyst'), 'member')
    ) THEN
        RAISE EXCEPTION 'login must be a login that is a member of loracomp_analyst and no superuser, and is %', login
            USING ERRCODE = 'invalid_parameter_value',
                HINT = format('CREATE ROLE %I LOGIN IN ROLE loracomp_analyst', limit_analyst.login);
    END IF;
    EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', login, connections);
    FOR setting IN
        SELECT * FROM (VALUES
            ('statement_timeout', limit_analyst.statement_timeout),
            ('idle_in_transaction_session_timeout', '1min'),
            ('max_parallel_workers_per_gather', '0'),
            ('work_mem', '16MB'),
            -- As on an SSD. With the default, the planner reads whole tables where some days are asked for.
            ('random_page_cost', '1.1'),
            ('default_transaction_read_only', 'on')
        ) AS s (name, value)
    LOOP
        EXECUTE format('ALTER ROLE %I SET %I = %L', login, setting.name, setting.value);
    END LOOP;
END
$$;
COMMENT ON FUNCTION loracomp.limit_analyst IS
'Sets limits for an analyst''s login: number of connections, length of a statement and of an idle transaction, one process and '
'16 MB for each query, read-only transactions, plans for an SSD. They apply to new sessions. The login itself can raise all but the first.';
