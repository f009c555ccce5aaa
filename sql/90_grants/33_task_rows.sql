-- drop: ALTER TABLE loracomp.task DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS readers_see_it ON loracomp.task
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.task
-- A task with a reader_role does not exist for anyone else; a role that has vanished has no members.
ALTER TABLE loracomp.task ENABLE ROW LEVEL SECURITY;
CREATE POLICY readers_see_it ON loracomp.task
FOR SELECT TO loracomp_submitter
USING (reader_role IS NULL OR pg_has_role(to_regrole(quote_ident(reader_role)), 'member'));
CREATE POLICY administrators_see_all ON loracomp.task
FOR SELECT TO loracomp_admin USING (TRUE);
