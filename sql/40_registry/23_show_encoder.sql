-- drop: DROP FUNCTION IF EXISTS loracomp.show_encoder()
-- Reads the encoder; no row where none is set.
CREATE FUNCTION loracomp.show_encoder() RETURNS SETOF loracomp.encoder
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = loracomp, pg_temp
BEGIN ATOMIC
SELECT * FROM loracomp.encoder;
END;
COMMENT ON FUNCTION loracomp.show_encoder IS 'The database''s encoder; no row where none is set.';
