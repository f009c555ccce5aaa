-- Row-level security: which rows a role may see and insert. It does not apply to the owner, so functions with the owner's
-- rights check their caller.

-- Which jobs a role may see and insert.
ALTER TABLE loracomp.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.job
FOR SELECT TO loracomp_submitter USING (submitted_by = current_user);
CREATE POLICY administrators_see_all ON loracomp.job
FOR SELECT TO loracomp_admin USING (TRUE);
CREATE POLICY everybody_inserts_as_themselves ON loracomp.job
FOR INSERT TO loracomp_submitter, loracomp_admin WITH CHECK (submitted_by = current_user);

-- A prediction is visible to the roles that can see its job.
ALTER TABLE loracomp.prediction ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.prediction
FOR SELECT TO loracomp_submitter USING (submitted_by = current_user::text);
CREATE POLICY administrators_see_all ON loracomp.prediction
FOR SELECT TO loracomp_admin USING (TRUE);

-- Only administrators may read the audit. Submitters see the attempts of their own jobs in job_attempt.
ALTER TABLE loracomp.audit_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.audit_event
FOR SELECT TO loracomp_admin USING (TRUE);

-- Only for administrators. Other roles see the tasks that they may know of by calling readable_tasks().
ALTER TABLE loracomp.task ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.task
FOR SELECT TO loracomp_admin USING (TRUE);

-- Only for administrators. Other roles see an example that they may read by calling readable_example().
ALTER TABLE loracomp.example ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.example
FOR SELECT TO loracomp_admin USING (TRUE);

-- Only for administrators. Other roles see an adapter that they may know of by calling readable_adapter().
ALTER TABLE loracomp.adapter ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.adapter
FOR SELECT TO loracomp_admin USING (TRUE);
