-- drop: DROP FUNCTION IF EXISTS loracomp.explain_job(bigint)
-- Reads only, with the caller's rights. Raises for a job that is not there or not the caller's.
CREATE FUNCTION loracomp.explain_job(id bigint)
RETURNS text LANGUAGE plpgsql STABLE
AS $$
DECLARE
    j loracomp.job;
    p loracomp.prediction;
BEGIN
    SELECT * INTO j FROM loracomp.job AS job WHERE job.id = explain_job.id;
    IF j.id IS NULL THEN
        RAISE EXCEPTION 'job % does not exist, or is not yours', explain_job.id
            USING ERRCODE = 'no_data_found', HINT = 'loracomp.job_result lists your jobs';
    END IF;
    SELECT * INTO p FROM loracomp.prediction AS prediction WHERE prediction.job_id = j.id;
    -- A terminal obeys control characters, and a text of somebody else's may hold them, or what turns its direction.
    RETURN regexp_replace(
        concat_ws(
            E'\n\n',
            loracomp.explain_state(j), loracomp.explain_next(j), loracomp.explain_request(j),
            nullif(loracomp.explain_answer(j, p), ''), nullif(loracomp.explain_route(p), ''),
            loracomp.explain_composition(p), loracomp.explain_run(p)
        ) COLLATE "C",
        '[\u0001-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]', '�', 'g'
    );
END
$$;
COMMENT ON FUNCTION loracomp.explain_job IS
'Why a job was answered as it was, in words: retrieved examples, tasks, adapters, scores, times and versions; or where
a job without an answer stands, and what to do.';
