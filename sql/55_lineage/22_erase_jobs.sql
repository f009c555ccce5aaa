-- drop: DROP FUNCTION IF EXISTS loracomp.erase_jobs(bigint[])
-- drop: DROP FUNCTION IF EXISTS loracomp.erase_jobs(jsonb)
-- Deletes jobs with their answers, traces and embeddings, whatever their status: a worker that holds one finds its fence
-- void. Events of the jobs stay, for they hold ids, states and roles alone; one more says how many were erased, by whom.
CREATE FUNCTION loracomp.erase_jobs(ids bigint[]) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before CONSTANT text := loracomp.give_reason('erase_jobs');
    gone record;
BEGIN
    IF erase_jobs.ids IS NULL THEN
        RAISE EXCEPTION 'ids must not be null' USING ERRCODE = 'null_value_not_allowed', HINT = 'name the jobs to erase';
    END IF;
    SELECT * INTO gone FROM loracomp.delete_jobs(erase_jobs.ids);
    INSERT INTO loracomp.audit_event (actor, entity, action, reason, before)
    VALUES (
        loracomp.caller(), 'job', 'delete', 'erase_jobs',
        jsonb_build_object('rows', cardinality(gone.deleted), 'predictions', gone.predictions)
    );
    PERFORM loracomp.give_reason(before);
    RETURN QUERY
    VALUES
        ('jobs deleted', cardinality(gone.deleted)::bigint, NULL::text),
        ('of them unfinished', gone.unfinished, NULL),
        ('answers with their traces deleted', gone.predictions, NULL)
    UNION ALL
    SELECT 'events of these jobs kept, without words', count(*), NULL
    FROM loracomp.audit_event AS e WHERE e.entity = 'job' AND e.entity_id = ANY (gone.deleted)
    UNION ALL
    SELECT 'numbers that no job has', count(*), string_agg(g.id::text, ', ' ORDER BY g.id)
    FROM (
        SELECT u.id FROM unnest(erase_jobs.ids) AS u (id)
        EXCEPT
        SELECT d.id FROM unnest(gone.deleted) AS d (id)
    ) AS g
    WHERE g.id IS NOT NULL;
END
$$;
COMMENT ON FUNCTION loracomp.erase_jobs(bigint[]) IS
'Deletes these jobs with their answers and traces, whoever submitted them; says what it deleted and what it kept.';

-- Equality of each tag and not containment: {"customer": {}} is contained in every tag customer that is an object.
CREATE FUNCTION loracomp.erase_jobs(tags jsonb) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF coalesce(jsonb_typeof(erase_jobs.tags), 'null') <> 'object' OR erase_jobs.tags = '{}' THEN
        RAISE EXCEPTION 'tags must be a JSON object that names a tag, and is %', coalesce(erase_jobs.tags::text, 'null')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'such as {"customer": 7}; erase_submitter erases all of a role';
    END IF;
    RETURN QUERY
    SELECT e.* FROM loracomp.erase_jobs(
        ids => ARRAY(
            SELECT j.id FROM loracomp.job AS j
            WHERE NOT EXISTS (
                SELECT FROM jsonb_each(erase_jobs.tags) AS g
                WHERE j.tags -> g.key IS DISTINCT FROM g.value
            )
        )
    ) AS e;
END
$$;
COMMENT ON FUNCTION loracomp.erase_jobs(jsonb) IS
'Deletes the jobs that have all of these tags, with their answers and traces; says what it deleted and what it kept.';
