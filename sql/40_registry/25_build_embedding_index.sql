-- drop: DROP FUNCTION IF EXISTS loracomp.build_embedding_index()
-- Builds the HNSW index that drop_embedding_index dropped.
CREATE FUNCTION loracomp.build_embedding_index() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = loracomp, pg_temp
AS $$
BEGIN
    EXECUTE format(
        'CREATE INDEX example_embedding_hnsw ON loracomp.example_embedding USING hnsw (embedding %s.vector_cosine_ops) '
        'WITH (ef_construction = 400)',
        (SELECT e.extnamespace::regnamespace FROM pg_catalog.pg_extension AS e WHERE e.extname = 'vector')
    );
    INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason)
    VALUES (loracomp.caller(), 'index', 'example_embedding_hnsw', 'insert', 'build_embedding_index');
END
$$;
COMMENT ON FUNCTION loracomp.build_embedding_index IS 'After many embeddings were loaded: builds their index.';
