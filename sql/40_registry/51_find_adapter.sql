-- drop: DROP FUNCTION IF EXISTS loracomp.find_adapter(text, integer, text)
-- Reads one adapter by name, version and base model; null means the newest version, the default base model.
CREATE FUNCTION loracomp.find_adapter(name text, version integer DEFAULT NULL, base_model text DEFAULT NULL)
RETURNS loracomp.adapter
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    base loracomp.base_model := loracomp.find_base_model(base_model);
    found_adapter loracomp.adapter;
BEGIN
    SELECT * INTO found_adapter FROM loracomp.adapter AS a
    WHERE a.base_model_id = base.id AND a.name = find_adapter.name
        AND a.version = coalesce(find_adapter.version, a.version)
    ORDER BY a.version DESC LIMIT 1;
    IF found_adapter.id IS NULL THEN
        RAISE EXCEPTION 'base model % has no adapter %', base.name, concat_ws('@', find_adapter.name, find_adapter.version)
            USING ERRCODE = 'no_data_found', HINT = 'loracomp adapter list names those that there are';
    END IF;
    RETURN found_adapter;
END
$$;
COMMENT ON FUNCTION loracomp.find_adapter IS 'The adapter of that name; null means the newest version and the default base model.';
