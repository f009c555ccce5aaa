-- drop: DROP FUNCTION IF EXISTS loracomp.retrieve_again(bigint, integer, text[])
-- Changes nothing. Retrieves for the job's submitter with today's examples; the stored vector is a halfvec, so similarities
-- differ from the stored ones by some 1e-4. It reads examples with its owner's rights, as whoever ran the job did.
-- Without enable_seqscan = off the planner prefers to read a table of 4,000 to some 10,000 examples whole, ten times slower.
-- hnsw.ef_search is what tune_routing sets by the size of the table.
CREATE FUNCTION loracomp.retrieve_again(
    job bigint, k integer, exclude_tasks text[], OUT example_tasks text[], OUT similarities double precision[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_seqscan = off
SET hnsw.iterative_scan = 'relaxed_order'
-- The default of 20,000 gives up among neighbours that are not eligible.
SET hnsw.max_scan_tuples = 200000
SET hnsw.ef_search = 100
AS $$
DECLARE
    asked loracomp.job;
    used_encoder text;
    encoder CONSTANT text := (SELECT format('%s/%s', e.name, e.input_version) FROM loracomp.encoder AS e);
    unknown CONSTANT text := loracomp.unknown_tasks(retrieve_again.exclude_tasks);
    eligible integer[];
BEGIN
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'exclude_tasks names tasks that do not exist: %', unknown
            USING ERRCODE = 'no_data_found', HINT = 'leave them out: what does not exist is not used';
    END IF;
    SELECT j.* INTO asked FROM loracomp.job AS j WHERE j.id = retrieve_again.job;
    SELECT p.encoder INTO used_encoder FROM loracomp.prediction AS p
    WHERE p.job_id = retrieve_again.job AND p.query_embedding IS NOT NULL;
    IF used_encoder IS NULL THEN
        RAISE EXCEPTION 'job % has no stored embedding to retrieve with', retrieve_again.job
            USING ERRCODE = 'no_data_found', HINT = 'leave exclude_tasks out, and k as stored or lower';
    END IF;
    IF used_encoder IS DISTINCT FROM encoder THEN
        RAISE EXCEPTION 'job % was embedded by %, and the examples are embedded by %', retrieve_again.job, used_encoder,
            coalesce(encoder, 'none')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'submit it again to retrieve for it';
    END IF;
    eligible := loracomp.eligible_tasks(
        asked.base_model, asked.submitted_by, coalesce(retrieve_again.exclude_tasks, asked.exclude_tasks)
    );
    SELECT
        coalesce(array_agg(t.name ORDER BY x.similarity DESC, x.example_id), '{}'),
        coalesce(array_agg(x.similarity ORDER BY x.similarity DESC, x.example_id), '{}')
    INTO example_tasks, similarities
    FROM loracomp.prediction AS p
    CROSS JOIN LATERAL loracomp.nearest_examples(
        loracomp.stored_vector(p.query_embedding), eligible, retrieve_again.k, loracomp.search_exactly(eligible)
    ) AS x
    JOIN loracomp.task AS t ON t.id = x.task_id
    WHERE p.job_id = retrieve_again.job AND x.similarity <> 'NaN';
END
$$;
COMMENT ON FUNCTION loracomp.retrieve_again IS
'Tasks and cosine similarities of the k train examples nearest to a job''s stored vector, best first, among the tasks that '
'its submitter may retrieve, but for those excluded (null: those that the job excluded).';
