-- drop: DROP FUNCTION IF EXISTS loracomp.shorten(text, integer)
-- Computes only.
CREATE FUNCTION loracomp.shorten(value text, length integer)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT CASE WHEN char_length(s.line) <= length THEN s.line ELSE rtrim(left(s.line, length - 1)) || '…' END
FROM (
    SELECT btrim(
        regexp_replace(left(value, length * 4) COLLATE "C", '[' || loracomp.white_space() || ']+', ' ', 'g')
    ) AS line
) AS s;
END;
COMMENT ON FUNCTION loracomp.shorten IS 'A text on one line of at most so many characters.';
