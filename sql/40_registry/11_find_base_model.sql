-- drop: DROP FUNCTION IF EXISTS loracomp.find_base_model(text)
-- Reads one base model; null means the default. Raises if there is none.
CREATE FUNCTION loracomp.find_base_model(name text) RETURNS loracomp.base_model
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    found_model loracomp.base_model;
BEGIN
    SELECT * INTO found_model FROM loracomp.base_model b
    WHERE b.name = find_base_model.name OR (find_base_model.name IS NULL AND b.is_default);
    IF found_model.id IS NULL THEN
        RAISE EXCEPTION 'base model % is not registered', coalesce(find_base_model.name, '(the default)')
            USING ERRCODE = 'no_data_found', HINT = 'loracomp model list names those that are; loracomp model add adds one';
    END IF;
    RETURN found_model;
END
$$;
COMMENT ON FUNCTION loracomp.find_base_model IS 'The base model of that name; null means the default.';
