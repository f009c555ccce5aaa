-- drop: ALTER TABLE loracomp.prediction DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS submitters_see_their_own ON loracomp.prediction
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.prediction
-- A prediction is seen by whoever sees its job. Policies for submitters compare a column and read no other table: EXPLAIN ANALYZE
-- would tell for how many rows they read it. Why reader(), and ANY: 30_job_rows.
ALTER TABLE loracomp.prediction ENABLE ROW LEVEL SECURITY;
CREATE POLICY submitters_see_their_own ON loracomp.prediction
FOR SELECT TO loracomp_submitter USING (submitted_by = ANY (ARRAY[loracomp.reader()::text]));
CREATE POLICY administrators_see_all ON loracomp.prediction
FOR SELECT TO loracomp_admin USING (true);
