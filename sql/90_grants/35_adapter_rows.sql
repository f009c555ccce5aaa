-- drop: ALTER TABLE loracomp.adapter DISABLE ROW LEVEL SECURITY
-- drop: DROP POLICY IF EXISTS administrators_see_all ON loracomp.adapter
-- For administrators. What others may know of an adapter, functions tell: readable_adapter.
ALTER TABLE loracomp.adapter ENABLE ROW LEVEL SECURITY;
CREATE POLICY administrators_see_all ON loracomp.adapter
FOR SELECT TO loracomp_admin USING (TRUE);
