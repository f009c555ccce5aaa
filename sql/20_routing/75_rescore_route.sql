-- drop: DROP FUNCTION IF EXISTS loracomp.rescore_route(bigint, jsonb, text[])
-- Changes nothing; reads stored traces with its owner's rights: of any job for analysts and administrators, of their own for
-- others that are let in, with labels for tasks that the caller may not know.
-- Retrieves again where the trace can't answer: for a larger k, or other excluded tasks.
CREATE FUNCTION loracomp.rescore_route(
    job bigint, settings jsonb DEFAULT '{}', exclude_tasks text[] DEFAULT NULL
) RETURNS TABLE (task text, probability double precision, in_nucleus boolean, weight double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    names text[];
    cosines double precision[];
    stored jsonb;
    stored_k integer;
    used loracomp.policy;
    labels CONSTANT jsonb := (
        SELECT coalesce(jsonb_object_agg(r.name, r.label), '{}') FROM loracomp.restricted_task AS r
        WHERE NOT loracomp.may_read(loracomp.caller(), r.reader_role)
    );
BEGIN
    SELECT p.example_tasks, p.similarities, p.policy INTO names, cosines, stored
    FROM loracomp.prediction AS p
    WHERE p.job_id = rescore_route.job AND (
        loracomp.caller_is_admin()
        OR coalesce(pg_has_role(loracomp.caller(), to_regrole('loracomp_analyst'), 'member'), false)
        OR EXISTS (SELECT FROM loracomp.job AS j WHERE j.id = p.job_id AND j.submitted_by = loracomp.caller())
    );
    IF stored IS NULL THEN
        RAISE EXCEPTION 'job % has no prediction', job
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    used := jsonb_populate_record(NULL::loracomp.policy, stored);
    stored_k := used.k;
    used := loracomp.with_settings(used, rescore_route.settings);
    IF used.k > stored_k OR rescore_route.exclude_tasks IS NOT NULL THEN
        SELECT r.example_tasks, r.similarities INTO names, cosines
        FROM loracomp.retrieve_again(job, used.k, rescore_route.exclude_tasks) AS r;
    END IF;
    names := names[:used.k];
    -- task_weights takes numbers: a name's is the place where it first stands.
    RETURN QUERY
    SELECT
        coalesce(labels ->> names[w.task_id], names[w.task_id]),
        w.probability,
        w.in_nucleus,
        CASE WHEN cosines[1] < used.min_similarity THEN 0 ELSE w.weight END
    FROM loracomp.task_weights(
        ARRAY(
            SELECT array_position(names, u.name) FROM unnest(names) WITH ORDINALITY AS u (name, place) ORDER BY u.place
        ),
        cosines[:used.k], used
    ) AS w;
END
$$;
COMMENT ON FUNCTION loracomp.rescore_route IS
'What retrieval would have weighted for a job under other settings, such as {"top_p": 0.9}; the rest is as stored. A larger '
'k than the job''s, or other exclude_tasks, retrieve again with the stored vector, among today''s examples. Whatever the '
'job''s router: the examples are always those of retrieval.';
