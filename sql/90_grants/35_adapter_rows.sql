-- drop: ALTER TABLE loracomp.adapter DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS readers_of_its_task_see_it ON loracomp.adapter
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.adapter
-- Who may read the task may read its adapters: the query inside sees tasks as the reader does.
ALTER TABLE loracomp.adapter ENABLE ROW LEVEL SECURITY;
CREATE POLICY readers_of_its_task_see_it ON loracomp.adapter
FOR SELECT TO loracomp_submitter
USING (EXISTS (SELECT FROM loracomp.task AS t WHERE t.id = task_id));
CREATE POLICY administrators_see_all ON loracomp.adapter
FOR SELECT TO loracomp_admin USING (true);
