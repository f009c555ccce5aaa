-- drop: DROP FUNCTION IF EXISTS loracomp.text_key(text)
-- Computes only.
CREATE FUNCTION loracomp.text_key(value text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT md5(lower(regexp_replace(regexp_replace(value, '^\s*\w+:', ''), '[\s[:punct:]]+', '', 'g')));
END;
COMMENT ON FUNCTION loracomp.text_key IS
'Hash of a text without case, spaces, punctuation and a label such as Question: in front.';
