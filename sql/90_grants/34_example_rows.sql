-- drop: ALTER TABLE loracomp.example DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS readers_of_its_task_see_it ON loracomp.example
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.example
-- Who may read the task may read its examples: the query inside sees tasks as the reader does.
ALTER TABLE loracomp.example ENABLE ROW LEVEL SECURITY;
CREATE POLICY readers_of_its_task_see_it ON loracomp.example
FOR SELECT TO loracomp_submitter
USING (EXISTS (SELECT FROM loracomp.task AS t WHERE t.id = task_id));
CREATE POLICY administrators_see_all ON loracomp.example
FOR SELECT TO loracomp_admin USING (true);
