-- Functions that constraints of the tables call, so they belong to the tables and not to sql/. The triggers refuse_faulty call them too. They are
-- written in plpgsql, because it caches plans: with functions in language sql, each INSERT of a job took 0.1 ms longer.

-- Unicode's white space, and the four separators that Python counts as such.
CREATE FUNCTION loracomp.white_space() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
COMMENT ON FUNCTION loracomp.white_space IS
'The white space characters, to put between the brackets of a regular expression. Unlike \s, they are the same on every server.';
-- It looks only at the first 10,000 characters, because checking a million spaces would take 15 ms.
CREATE FUNCTION loracomp.is_blank(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN pg_catalog."left"(value, 10000) COLLATE pg_catalog."C" OPERATOR(pg_catalog.!~)
        ('[^' OPERATOR(pg_catalog.||) loracomp.white_space() OPERATOR(pg_catalog.||) ']');
END
$$;
COMMENT ON FUNCTION loracomp.is_blank IS 'Whether the first 10,000 characters of a text are all white space; null for null.';
CREATE FUNCTION loracomp.texts_are_not_blank(texts text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM pg_catalog.unnest(texts) AS t (value) WHERE t.value IS NULL OR loracomp.is_blank(t.value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_are_not_blank IS 'Whether no text of the array is null or only white space.';
CREATE FUNCTION loracomp.texts_are_distinct(texts text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN (
        SELECT pg_catalog.count(DISTINCT t.value) OPERATOR(pg_catalog.=) pg_catalog.count(t.value)
        FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_are_distinct IS 'Whether no text is in the array twice.';
CREATE FUNCTION loracomp.texts_length(texts text[]) RETURNS bigint LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN (
        SELECT coalesce(pg_catalog.sum(pg_catalog.char_length(t.value)), 0) FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_length IS 'Total number of characters of the array''s texts.';
