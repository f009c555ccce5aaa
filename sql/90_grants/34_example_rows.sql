-- drop: ALTER TABLE loracomp.example DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.example
-- For administrators. What others may know of an example, functions tell: readable_example.
ALTER TABLE loracomp.example ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.example
FOR SELECT TO loracomp_admin USING (TRUE);
