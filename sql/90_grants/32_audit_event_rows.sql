-- drop: ALTER TABLE loracomp.audit_event DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.audit_event
-- The audit is for administrators. Submitters see what happened to their own jobs by job_attempt.
ALTER TABLE loracomp.audit_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.audit_event
FOR SELECT TO loracomp_admin USING (TRUE);
