-- drop: DROP FUNCTION IF EXISTS loracomp.erase_example(bigint)
-- Deletes an example with its embedding, and the jobs of evaluations that asked it with their answers, for they hold its
-- text. Traces keep its id and similarity, the audit its id. Adapters that have learnt from it are reported, not changed.
CREATE FUNCTION loracomp.erase_example(example_id bigint) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before CONSTANT text := loracomp.give_reason('erase_example');
    old loracomp.example;
    embeddings bigint;
    asking record;
BEGIN
    SELECT e.* INTO old FROM loracomp.example AS e WHERE e.id = erase_example.example_id FOR UPDATE;
    IF old.id IS NULL THEN
        RAISE EXCEPTION 'there is no example %', erase_example.example_id USING ERRCODE = 'no_data_found';
    END IF;
    DELETE FROM loracomp.example_embedding AS v WHERE v.example_id = old.id;
    GET DIAGNOSTICS embeddings = ROW_COUNT;
    DELETE FROM loracomp.example AS e WHERE e.id = old.id;
    SELECT * INTO asking FROM loracomp.delete_jobs(
        ARRAY(SELECT j.id FROM loracomp.job AS j WHERE j.evaluation IS NOT NULL AND j.example_id = old.id)
    );
    PERFORM loracomp.give_reason(before);
    RETURN QUERY
    SELECT f.what, f.rows, f.names
    FROM (
        VALUES
            (1, 'example deleted', 1::bigint, old.source_ref),
            (2, 'embedding deleted', embeddings, NULL),
            (
                3, 'jobs of evaluations that asked it deleted', cardinality(asking.deleted)::bigint,
                array_to_string(asking.deleted, ', ')
            ),
            (4, 'their answers deleted', asking.predictions, NULL)
    ) AS f (place, what, rows, names)
    UNION ALL
    SELECT
        'traces that name its id kept',
        (SELECT count(*) FROM loracomp.prediction AS p WHERE p.example_ids @> ARRAY[old.id]),
        NULL
    UNION ALL
    SELECT
        'adapters of its task kept, which may have learnt from it',
        count(*),
        string_agg(format('%s@%s (%s)', a.name, a.version, a.status), ', ' ORDER BY a.name, a.version)
    FROM loracomp.adapter AS a
    WHERE a.task_id = old.task_id AND old.split = 'train';
END
$$;
COMMENT ON FUNCTION loracomp.erase_example IS
'Deletes an example with its embedding and the evaluations'' jobs that asked it; says what it deleted, and what it kept '
'that has to do with it. Importing the data set again would bring it back.';
