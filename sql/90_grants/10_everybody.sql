-- drop: REVOKE USAGE ON SCHEMA loracomp FROM loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin
-- drop: REVOKE ALL ON ALL TABLES IN SCHEMA loracomp FROM loracomp_worker
-- Takes from PUBLIC what Postgres gives it with every new function, in the transaction that makes them; what roles may
-- do follows, by name. Every role may see which release the schema is of.
REVOKE ALL ON ALL ROUTINES IN SCHEMA loracomp, bi FROM public;
GRANT USAGE ON SCHEMA loracomp TO loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin;
GRANT SELECT ON TABLE loracomp.alembic_version, loracomp.sql_object
TO loracomp_submitter, loracomp_worker, loracomp_analyst, loracomp_admin;
