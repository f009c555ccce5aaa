-- drop: REVOKE ALL ON ALL TABLES IN SCHEMA loracomp, bi FROM loracomp_analyst
-- drop: REVOKE ALL ON SCHEMA bi FROM loracomp_analyst
-- An analyst reads bi, which holds nobody's words, and nothing else.
GRANT USAGE ON SCHEMA bi TO loracomp_analyst;
GRANT SELECT ON ALL TABLES IN SCHEMA bi TO loracomp_analyst;
