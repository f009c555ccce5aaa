-- Splits a prompt into pieces, and says how the columns of a key are written as text and read back. Nothing here reads a table of users.
--   prompt_pieces       splits a prompt into literal text and column names
--   prompt_margins      how much of a prompt stands around the columns
--   key_forms           SQL that writes a key column as text and reads it back

-- {column} names a column exactly as it is written in the catalog; {{ and }} stand for braces. All text between two columns is one piece.
CREATE FUNCTION loracomp.prompt_pieces(prompt text)
RETURNS TABLE (ordinal bigint, literal text, col text)
LANGUAGE plpgsql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT
        t.ordinal,
        CASE WHEN t.piece !~ '^[{][^{]' THEN replace(replace(t.piece, '{{', '{'), '}}', '}') END,
        CASE WHEN t.piece ~ '^[{][^{]' THEN substr(t.piece, 2, length(t.piece) - 2) END
    FROM (
        SELECT m.ordinal, m.parts[1] AS piece
        FROM regexp_matches(prompt, '[{][^{}]+[}]|(?:[^{}]|[{][{]|[}][}])+|.', 'g') WITH ORDINALITY AS m (parts, ordinal)
    ) AS t;
    IF regexp_replace(prompt, '[{][{]|[}][}]|[{][^{}]+[}]', '', 'g') ~ '[{}]' THEN
        RAISE EXCEPTION 'prompt % has a single brace that is not part of a {column}', left(prompt, 200)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'write {{ or }} for a brace';
    END IF;
END
$$;
COMMENT ON FUNCTION loracomp.prompt_pieces IS 'Splits a declaration''s prompt into literal text and column names, in order.';

CREATE FUNCTION loracomp.prompt_margins(prompt text, OUT before integer, OUT after integer)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT
        coalesce(sum(char_length(p.literal)) FILTER (WHERE p.ordinal < p.first_column), 0),
        coalesce(sum(char_length(p.literal)) FILTER (WHERE p.ordinal > p.last_column), 0)
    FROM (
        SELECT
            t.*, min(t.ordinal) FILTER (WHERE t.col IS NOT NULL) OVER () AS first_column,
            max(t.ordinal) FILTER (WHERE t.col IS NOT NULL) OVER () AS last_column
        FROM loracomp.prompt_pieces(prompt_margins.prompt) AS t
    ) AS p;
END;
COMMENT ON FUNCTION loracomp.prompt_margins IS
'Number of characters that stand before the first column and after the last column of a declaration''s prompt.';

-- Each form has one %s, which stands for the value. Equal keys must be equal as text in every session, so times are written in ISO format
-- and UTC, and numbers without trailing zeros. Only Postgres's built-in types are allowed, because no user's code may run when a key is
-- written or read.
CREATE FUNCTION loracomp.key_forms(type oid) RETURNS TABLE (written text, read text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        CASE t.oid::regtype
            WHEN 'date'::regtype THEN '(to_json(%s) #>> ''{}'')'
            WHEN 'timestamp'::regtype THEN '(to_json(%s) #>> ''{}'')'
            WHEN 'timestamptz'::regtype THEN '(to_json(timezone(''UTC'', %s)) #>> ''{}'')'
            WHEN 'numeric'::regtype THEN 'trim_scale(%s)::pg_catalog.text'
            ELSE '%s::pg_catalog.text'
        END,
        CASE t.oid::regtype
            WHEN 'timestamptz'::regtype THEN 'timezone(''UTC'', (%s)::pg_catalog.timestamp)'
            ELSE '(%s)::pg_catalog.' || t.typname
        END
    FROM pg_type AS t
    WHERE t.oid = key_forms.type AND t.oid = ANY (
        '{int2,int4,int8,numeric,text,varchar,bpchar,name,uuid,bool,date,timestamp,timestamptz}'::regtype[]
    );
END;
COMMENT ON FUNCTION loracomp.key_forms IS
'Formats that write a value of a type as text and read it back; no row if a key can''t have this type.';
