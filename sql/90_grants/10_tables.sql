-- Privileges of each role on tables and views. 20_rows.sql limits the rows; 30_functions.sql grants functions.

-- Default privileges of loracomp's owner are meant for objects of its own.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT CASE WHEN g.grantee > 0 THEN quote_ident(pg_get_userbyid(g.grantee)) ELSE 'PUBLIC' END
        FROM pg_catalog.pg_default_acl AS a CROSS JOIN LATERAL aclexplode(a.defaclacl) AS g
        WHERE a.defaclrole = to_regrole(quote_ident(current_user)) AND g.grantee <> a.defaclrole
    LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA loracomp, bi, loracomp_parts FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA loracomp, bi FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA loracomp, bi FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA loracomp, bi FROM %s', grantee);
    END LOOP;
END
$$;

-- Postgres grants EXECUTE on every new function to PUBLIC. This is revoked here, in the transaction that creates the functions. Each role
-- then gets its privileges. Every role may read the schema's revision.
REVOKE ALL ON ALL ROUTINES IN SCHEMA loracomp, bi FROM public;
GRANT USAGE ON SCHEMA loracomp TO loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin;
GRANT SELECT ON TABLE loracomp.alembic_version, loracomp.sql_object
TO loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin;

-- Submitters may insert jobs, read their own jobs and traces, and read the names that a job may use. INSERT is granted on all columns
-- except the id, so that the trigger check_columns can name the column when it refuses one that submitters may not set.
DO $$
BEGIN
    EXECUTE (
        SELECT format('GRANT INSERT (%s) ON TABLE loracomp.job TO loracomp_submitter, loracomp_admin', string_agg(a.attname, ', '))
        FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = 'loracomp.job'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'id'
    );
END
$$;
GRANT SELECT ON TABLE loracomp.job, loracomp.prediction TO loracomp_submitter;
GRANT SELECT ON TABLE
loracomp.job_result,
loracomp.job_trace,
loracomp.retrieved_example,
loracomp.composed_adapter,
loracomp.job_attempt,
loracomp.queue_health
TO loracomp_submitter;
GRANT SELECT ON TABLE loracomp.policy, loracomp.base_model TO loracomp_submitter;

-- Analysts may read only schema bi, which contains no texts of users.
GRANT USAGE ON SCHEMA bi TO loracomp_analyst;
GRANT SELECT ON ALL TABLES IN SCHEMA bi TO loracomp_analyst;

-- Administrators may read everything, insert jobs, and change the rest through functions. They write adapters' weights by COPY.
GRANT USAGE ON SCHEMA bi TO loracomp_admin;
GRANT SELECT ON ALL TABLES IN SCHEMA loracomp, bi TO loracomp_admin;
GRANT INSERT ON TABLE loracomp.adapter_part TO loracomp_admin;
