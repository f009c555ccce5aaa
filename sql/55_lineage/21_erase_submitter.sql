-- drop: DROP FUNCTION IF EXISTS loracomp.erase_submitter(name)
-- Deletes all jobs of a submitter with their answers, traces and embeddings, whatever their status: a worker that holds one
-- finds its fence void. Events of the jobs stay, for they hold ids, states and roles alone; one more says who erased whom.
-- Reports are not refreshed: that may last, and would hold up this deletion.
CREATE FUNCTION loracomp.erase_submitter(submitter name) RETURNS TABLE (what text, rows bigint, names text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    before CONSTANT text := loracomp.give_reason('erase_submitter');
    gone record;
BEGIN
    SELECT * INTO gone FROM loracomp.delete_jobs(
        ARRAY(SELECT j.id FROM loracomp.job AS j WHERE j.submitted_by = erase_submitter.submitter)
    );
    DELETE FROM loracomp.turn AS t WHERE t.submitted_by = erase_submitter.submitter;
    -- The empty name stands for all submitters.
    DELETE FROM loracomp.queue_count AS c
    WHERE c.submitted_by = erase_submitter.submitter AND erase_submitter.submitter <> '';
    INSERT INTO loracomp.audit_event (actor, entity, entity_name, action, reason, after)
    VALUES (
        loracomp.caller(), 'submitter', erase_submitter.submitter, 'delete', 'erase_submitter',
        jsonb_build_object('jobs', cardinality(gone.deleted), 'predictions', gone.predictions)
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
    SELECT
        'rows of reports until they are refreshed', count(*),
        CASE WHEN count(*) > 0 THEN 'bi.cost_by_submitter' END
    FROM loracomp.cost_by_submitter AS c WHERE c.submitted_by = erase_submitter.submitter
    UNION ALL
    SELECT 'evaluations kept that it started', count(*), string_agg(e.name, ', ' ORDER BY e.name)
    FROM loracomp.evaluation AS e WHERE e.created_by = erase_submitter.submitter
    UNION ALL
    SELECT
        'adapters kept that it registered', count(*),
        string_agg(format('%s@%s', a.name, a.version), ', ' ORDER BY a.name, a.version)
    FROM loracomp.adapter AS a WHERE a.created_by = erase_submitter.submitter;
END
$$;
COMMENT ON FUNCTION loracomp.erase_submitter IS
'Deletes every job of a submitter with its answer and trace; says what it deleted, and what it kept that has to do with it.';
