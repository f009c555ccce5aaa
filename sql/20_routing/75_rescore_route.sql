-- drop: DROP FUNCTION IF EXISTS loracomp.rescore_route(bigint, double precision, double precision, text, text, integer, text, integer, double precision)
-- Changes nothing; reads the stored trace with the caller's rights, so that whoever may read a prediction may re-score it.
CREATE FUNCTION loracomp.rescore_route(
    job bigint,
    temperature double precision DEFAULT NULL,
    top_p double precision DEFAULT NULL,
    aggregation text DEFAULT NULL,
    nucleus text DEFAULT NULL,
    max_adapters integer DEFAULT NULL,
    weighting text DEFAULT NULL,
    k integer DEFAULT NULL,
    min_similarity double precision DEFAULT NULL
) RETURNS TABLE (task text, probability double precision, in_nucleus boolean, weight double precision)
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    names text[];
    cosines double precision[];
    stored jsonb;
    used loracomp.policy;
BEGIN
    SELECT p.example_tasks, p.similarities, p.policy INTO names, cosines, stored
    FROM loracomp.prediction AS p WHERE p.job_id = rescore_route.job;
    IF stored IS NULL THEN
        RAISE EXCEPTION 'job % has no prediction', job
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    used := jsonb_populate_record(NULL::loracomp.policy, stored);
    IF k > used.k THEN
        RAISE EXCEPTION 'k must be at most %, the examples that job % retrieved, not %', used.k, job, k
            USING ERRCODE = 'invalid_parameter_value', HINT = 'submit it again under a policy with a larger k';
    END IF;
    used.k := coalesce(rescore_route.k, used.k);
    used.temperature := coalesce(rescore_route.temperature, used.temperature);
    used.aggregation := coalesce(rescore_route.aggregation, used.aggregation);
    used.nucleus := coalesce(rescore_route.nucleus, used.nucleus);
    used.top_p := coalesce(rescore_route.top_p, used.top_p);
    used.max_adapters := coalesce(rescore_route.max_adapters, used.max_adapters);
    used.weighting := coalesce(rescore_route.weighting, used.weighting);
    used.min_similarity := coalesce(rescore_route.min_similarity, used.min_similarity);
    PERFORM loracomp.check_routing_settings(
        used.temperature, used.aggregation, used.nucleus, used.top_p, used.max_adapters, used.weighting, used.k,
        used.min_similarity
    );
    names := names[:used.k];
    -- task_weights takes numbers: a name's is the place where it first stands.
    RETURN QUERY
    SELECT
        names[w.task_id],
        w.probability,
        w.in_nucleus,
        CASE WHEN cosines[1] < used.min_similarity THEN 0 ELSE w.weight END
    FROM loracomp.task_weights(
        ARRAY(
            SELECT array_position(names, u.name) FROM unnest(names) WITH ORDINALITY AS u (name, place) ORDER BY u.place
        ),
        cosines[:used.k], used.temperature, used.aggregation, used.nucleus, used.top_p, used.max_adapters,
        used.weighting
    ) AS w;
END
$$;
COMMENT ON FUNCTION loracomp.rescore_route IS
'What retrieval would have weighted from a job''s stored trace under other settings; null means as stored. k can only be '
'lowered. Whatever the job''s router: the examples are always those of retrieval.';
