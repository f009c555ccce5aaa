-- What becomes of the jobs of declarations, copied to answer_row, where it stays when the jobs are purged.
--   trigger take_answers        after an update of jobs
--   trigger lose_answers        after jobs were erased
--   answers_since               the answers that came since a cursor

CREATE FUNCTION loracomp.take_answers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    written integer[];
BEGIN
    IF NOT EXISTS (SELECT FROM loracomp.answers) THEN
        RETURN NULL;
    END IF;
    WITH ended AS (
        UPDATE loracomp.answer_row AS r SET
            status = CASE n.status WHEN 'succeeded' THEN 'answered' WHEN 'failed' THEN 'failed' WHEN 'cancelled' THEN 'failed' ELSE 'asked' END,
            reason = CASE WHEN n.finished_at IS NOT NULL THEN n.error END,
            answer = CASE WHEN n.choices IS NULL THEN ltrim(p.output, E' \t\r\n') ELSE p.output END,
            confidence = loracomp.confidence(p.choice_scores),
            answered_by = CASE WHEN p.composed_tasks = '{}' THEN 'base' WHEN p.job_id IS NOT NULL THEN 'mix' END,
            answered_at = n.finished_at,
            changed_in = pg_current_xact_id()::text::bigint
        FROM new_job AS n LEFT JOIN loracomp.prediction AS p ON p.job_id = n.id
        WHERE r.job_id = n.id AND (n.finished_at IS NOT NULL OR r.status = 'failed') -- a failed job may be queued again
        RETURNING r.answers_id
    )
    SELECT array_agg(DISTINCT e.answers_id) INTO written FROM ended AS e;
    PERFORM pg_notify('loracomp_answers', a.view::text) FROM loracomp.answers AS a
    WHERE a.id = ANY (written) AND pg_notification_queue_usage() < 0.5;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.take_answers IS 'Trigger: copies what became of declarations'' jobs to answer_row, and notifies listeners.';

CREATE TRIGGER take_answers AFTER UPDATE ON loracomp.job
REFERENCING NEW TABLE AS new_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.take_answers();
COMMENT ON TRIGGER take_answers ON loracomp.job IS 'Copies what became of declarations'' jobs.';

-- Purged jobs leave their answers; erased ones don't.
CREATE FUNCTION loracomp.lose_answers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF current_setting('loracomp.purging', true) IS DISTINCT FROM 'on' THEN
        UPDATE loracomp.answer_row AS r SET
            status = 'refused', reason = 'its job was erased', job_id = NULL, answer = NULL, confidence = NULL, answered_by = NULL,
            answered_at = NULL, changed_in = pg_current_xact_id()::text::bigint
        FROM old_job AS o WHERE r.job_id = o.id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION loracomp.lose_answers IS 'Trigger: clears the answers of erased jobs.';

CREATE TRIGGER lose_answers AFTER DELETE ON loracomp.job
REFERENCING OLD TABLE AS old_job
FOR EACH STATEMENT EXECUTE FUNCTION loracomp.lose_answers();
COMMENT ON TRIGGER lose_answers ON loracomp.job IS 'Clears the answers of erased jobs.';
