-- Base models.
--   register_base_model
--   set_default_base_model
--     find_base_model
--   find_base_model             by name, or the default

-- Adds a base model, or replaces its description; raises if the name belongs to a base model with another fingerprint.
-- The first base model becomes the default. A later one becomes the default if make_default is true, in place of the former default.
CREATE FUNCTION loracomp.register_base_model(
    name text,
    source text,
    revision text,
    fingerprint text,
    architecture text,
    context_length integer,
    parameter_count bigint,
    modules jsonb,
    make_default boolean DEFAULT false,
    has_chat_template boolean DEFAULT false
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    known loracomp.base_model;
    becomes_default boolean;
    base_model_id integer;
BEGIN
    SELECT * INTO known FROM loracomp.base_model b WHERE b.name = register_base_model.name FOR NO KEY UPDATE;
    IF known.fingerprint <> register_base_model.fingerprint THEN
        RAISE EXCEPTION 'base model % is registered with other weights, settings or another tokenizer (fingerprint %..., these are %...)',
            known.name, left(known.fingerprint, 12), left(register_base_model.fingerprint, 12)
            USING HINT = 'register it under another name';
    END IF;
    becomes_default := make_default OR NOT EXISTS (SELECT FROM loracomp.base_model b WHERE b.is_default);
    IF becomes_default THEN
        UPDATE loracomp.base_model b SET is_default = false WHERE b.is_default AND b.name <> register_base_model.name;
    END IF;
    INSERT INTO loracomp.base_model AS b
        (name, source, revision, fingerprint, architecture, context_length, parameter_count, modules, is_default,
            has_chat_template)
    VALUES (
        register_base_model.name, register_base_model.source, register_base_model.revision,
        register_base_model.fingerprint, register_base_model.architecture, register_base_model.context_length,
        register_base_model.parameter_count, register_base_model.modules, becomes_default,
        register_base_model.has_chat_template
    )
    ON CONFLICT ON CONSTRAINT base_model_name_is_taken DO UPDATE SET
        source = excluded.source, revision = excluded.revision, architecture = excluded.architecture,
        context_length = excluded.context_length, parameter_count = excluded.parameter_count, modules = excluded.modules,
        is_default = b.is_default OR becomes_default, has_chat_template = excluded.has_chat_template
    RETURNING b.id INTO base_model_id;
    RETURN base_model_id;
END
$$;
COMMENT ON FUNCTION loracomp.register_base_model IS
'Registers a base model and returns its id. A name that belongs to another fingerprint is refused. The first base model becomes the default.';

-- Makes a registered base model the default for jobs that name none, in place of the former default.
CREATE FUNCTION loracomp.set_default_base_model(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    chosen CONSTANT integer := (loracomp.find_base_model(coalesce(set_default_base_model.name, ''))).id;
BEGIN
    -- Otherwise two concurrent calls could each set a default, and a unique index would refuse the second.
    LOCK TABLE loracomp.base_model IN SHARE ROW EXCLUSIVE MODE;
    UPDATE loracomp.base_model AS b SET is_default = false WHERE b.is_default AND b.id <> chosen;
    UPDATE loracomp.base_model AS b SET is_default = true WHERE b.id = chosen AND NOT b.is_default;
END
$$;
COMMENT ON FUNCTION loracomp.set_default_base_model IS
'Makes a base model the default. Jobs that are already queued keep their base model.';

-- Reads the base model with this name, or the default if the name is null. Raises if there is none.
CREATE FUNCTION loracomp.find_base_model(name text) RETURNS loracomp.base_model
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
DECLARE
    found_model loracomp.base_model;
BEGIN
    SELECT * INTO found_model FROM loracomp.base_model b
    WHERE b.name = find_base_model.name OR (find_base_model.name IS NULL AND b.is_default);
    IF found_model.id IS NULL THEN
        IF find_base_model.name IS NULL THEN
            RAISE EXCEPTION 'no base model is the default'
                USING ERRCODE = 'no_data_found', HINT = 'loracomp library load brings one, and loracomp model default chooses one';
        END IF;
        RAISE EXCEPTION 'base model % is not registered', find_base_model.name
            USING ERRCODE = 'no_data_found', HINT = concat(
                'loracomp model list shows the existing ones; loracomp model add adds one',
                loracomp.did_you_mean(find_base_model.name, ARRAY(SELECT b.name FROM loracomp.base_model AS b))
            );
    END IF;
    RETURN found_model;
END
$$;
COMMENT ON FUNCTION loracomp.find_base_model IS 'The base model with this name; null: the default base model.';
