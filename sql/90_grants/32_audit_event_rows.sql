-- drop: ALTER TABLE loracomp.audit_event DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS submitters_see_their_own ON loracomp.audit_event
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.audit_event
-- Submitters see what happened to their own jobs, through job_attempt.
ALTER TABLE loracomp.audit_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.audit_event
FOR SELECT TO loracomp_submitter
USING (
    entity = 'job'
    AND EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = entity_id AND j.submitted_by = current_user)
);
CREATE POLICY administrators_see_all ON loracomp.audit_event
FOR SELECT TO loracomp_admin USING (true);
