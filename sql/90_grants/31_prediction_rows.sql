-- drop: ALTER TABLE loracomp.prediction DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS submitters_see_their_own ON loracomp.prediction
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.prediction
-- A prediction is seen by whoever sees its job.
ALTER TABLE loracomp.prediction ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.prediction
FOR SELECT TO loracomp_submitter
USING (EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = job_id AND j.submitted_by = current_user));
CREATE POLICY administrators_see_all ON loracomp.prediction
FOR SELECT TO loracomp_admin USING (true);
