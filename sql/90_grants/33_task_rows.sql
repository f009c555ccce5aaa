-- drop: ALTER TABLE loracomp.task DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.task
-- For administrators. What others may know of a task, functions tell: readable_tasks.
ALTER TABLE loracomp.task ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.task
FOR SELECT TO loracomp_admin USING (TRUE);
