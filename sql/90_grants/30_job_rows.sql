-- drop: ALTER TABLE loracomp.job DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS submitters_see_their_own ON loracomp.job
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.job
-- drop: DROP POLICY IF EXISTS everybody_inserts_as_themselves ON loracomp.job
-- Which jobs a role sees and inserts. The owner is not bound: functions with its rights check their caller. For its place among
-- a reader's own comparisons see reader(); ANY of one, for it costs half of an =.
ALTER TABLE loracomp.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.job
FOR SELECT TO loracomp_submitter USING (submitted_by = ANY (ARRAY[loracomp.reader()]));
CREATE POLICY administrators_see_all ON loracomp.job
FOR SELECT TO loracomp_admin USING (true);
CREATE POLICY everybody_inserts_as_themselves ON loracomp.job
FOR INSERT TO loracomp_submitter, loracomp_admin WITH CHECK (submitted_by = current_user);
