-- drop: DROP FUNCTION IF EXISTS loracomp.text_key(text)
-- Computes only. What spaces and punctuation are is the same on every server; the case of letters beyond ASCII is the locale's.
CREATE FUNCTION loracomp.text_key(value text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT md5(lower(regexp_replace(
    regexp_replace(value COLLATE "C", '^[' || s.spaces || ']*[^' || s.others || ']+:', ''),
    '[' || s.others || ']+', '', 'g'
)))
FROM (
    SELECT
        loracomp.white_space() AS spaces,
        -- Of ASCII and Latin 1, quotes and dashes.
        loracomp.white_space() || '!-/:-@[-`{-~\u00a1\u00ab\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u205e' AS others
) AS s;
END;
COMMENT ON FUNCTION loracomp.text_key IS
'Hash of a text without case, spaces, punctuation and a label such as Question: in front.';
