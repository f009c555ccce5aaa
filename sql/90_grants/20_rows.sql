-- Which rows a role sees and inserts. The owner is not bound: functions with its rights check their caller.

-- Which jobs a role sees and inserts. For its place among
-- a reader's own comparisons see reader(); ANY of one, for it costs half of an =.
ALTER TABLE loracomp.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.job
FOR SELECT TO loracomp_submitter USING (submitted_by = ANY (ARRAY[loracomp.reader()]));
CREATE POLICY administrators_see_all ON loracomp.job
FOR SELECT TO loracomp_admin USING (TRUE);
CREATE POLICY everybody_inserts_as_themselves ON loracomp.job
FOR INSERT TO loracomp_submitter, loracomp_admin WITH CHECK (submitted_by = current_user);

-- A prediction is seen by whoever sees its job. Policies for submitters compare a column and read no other table: EXPLAIN ANALYZE
-- would tell for how many rows they read it. Why reader(), and ANY: as above.
ALTER TABLE loracomp.prediction ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.prediction
FOR SELECT TO loracomp_submitter USING (submitted_by = ANY (ARRAY[loracomp.reader()::text]));
CREATE POLICY administrators_see_all ON loracomp.prediction
FOR SELECT TO loracomp_admin USING (TRUE);

-- The audit is for administrators. Submitters see what happened to their own jobs by job_attempt.
ALTER TABLE loracomp.audit_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.audit_event
FOR SELECT TO loracomp_admin USING (TRUE);

-- For administrators. What others may know of a task, functions tell: readable_tasks.
ALTER TABLE loracomp.task ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.task
FOR SELECT TO loracomp_admin USING (TRUE);

-- For administrators. What others may know of an example, functions tell: readable_example.
ALTER TABLE loracomp.example ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.example
FOR SELECT TO loracomp_admin USING (TRUE);

-- For administrators. What others may know of an adapter, functions tell: readable_adapter.
ALTER TABLE loracomp.adapter ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.adapter
FOR SELECT TO loracomp_admin USING (TRUE);
