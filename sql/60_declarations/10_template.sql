-- What is made of a declaration's words: pieces of its prompt, and forms of its keys. Everything here only computes.
--   prompt_pieces       the pieces of a template: literal text, and names of columns
--   key_forms           how the value of a key's column is written as text, and read again

-- {column} names a column exactly as it is written in the catalog; {{ and }} stand for braces.
CREATE FUNCTION loracomp.prompt_pieces(prompt text)
RETURNS TABLE (place bigint, literal text, col text)
LANGUAGE plpgsql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT
        t.place,
        CASE WHEN t.piece IN ('{{', '}}') THEN left(t.piece, 1) WHEN t.piece !~ '^\{' THEN t.piece END,
        CASE WHEN t.piece ~ '^\{[^{]' THEN substr(t.piece, 2, length(t.piece) - 2) END
    FROM (
        SELECT m.place, m.parts[1] AS piece
        FROM regexp_matches(prompt, '\{\{|\}\}|\{[^{}]+\}|[^{}]+|.', 'g') WITH ORDINALITY AS m (parts, place)
    ) AS t;
    IF regexp_replace(prompt, '\{\{|\}\}|\{[^{}]+\}', '', 'g') ~ '[{}]' THEN
        RAISE EXCEPTION 'prompt % has a single brace that is not part of a {column}', left(prompt, 200)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'write {{ or }} for a brace';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.prompt_pieces IS 'The pieces of a declaration''s prompt: literal texts, and names of columns.';

-- Formats with one %s, a column's name. Only types of Postgres's own, whose text is the same in each session: times are written in
-- ISO format and UTC, numbers without zeros at their end, as equal keys must be equal texts.
CREATE FUNCTION loracomp.key_forms(type oid, OUT written text, OUT read text)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT
        CASE
            WHEN t.name IN ('date', 'timestamp without time zone') THEN '(pg_catalog.to_json(%1$s) OPERATOR(pg_catalog.#>>) ''{}'')'
            WHEN t.name = 'timestamp with time zone'
                THEN '(pg_catalog.to_json(pg_catalog.timezone(''UTC'', %1$s)) OPERATOR(pg_catalog.#>>) ''{}'')'
            WHEN t.name = 'numeric' THEN 'pg_catalog.trim_scale(%1$s)::pg_catalog.text'
            ELSE '%1$s::pg_catalog.text'
        END,
        CASE t.name
            WHEN 'timestamp with time zone' THEN 'pg_catalog.timezone(''UTC'', (%s)::pg_catalog.timestamp)'
            WHEN 'character' THEN '(%s)::pg_catalog.bpchar' -- character would be one letter
            ELSE '(%s)::' || t.name
        END
    FROM (SELECT format_type(key_forms.type, NULL) AS name) AS t
    WHERE t.name IN (
        'smallint', 'integer', 'bigint', 'numeric', 'text', 'character varying', 'character', 'name', 'uuid', 'boolean',
        'date', 'timestamp without time zone', 'timestamp with time zone'
    );
$$;
COMMENT ON FUNCTION loracomp.key_forms IS 'How a key''s value is written as text, and read from it, as formats; null for types that keys may not have.';
