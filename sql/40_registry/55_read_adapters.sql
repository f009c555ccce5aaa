-- drop: DROP FUNCTION IF EXISTS loracomp.read_adapters(integer[])
-- Reads the weights of adapters, part by part in order, with what is needed to check and to use them.
CREATE FUNCTION loracomp.read_adapters(adapter_ids integer[])
RETURNS TABLE (adapter_id integer, name text, version integer, sha256 text, scaling double precision, bytes bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT a.id, a.name, a.version, a.sha256, a.scaling, w.bytes
FROM loracomp.adapter AS a
LEFT JOIN loracomp.adapter_weights AS w ON a.id = w.adapter_id
WHERE a.id = ANY (read_adapters.adapter_ids)
ORDER BY a.id, w.part;
END;
COMMENT ON FUNCTION loracomp.read_adapters IS 'Weights of adapters, in parts, with the hash to check them by.';
