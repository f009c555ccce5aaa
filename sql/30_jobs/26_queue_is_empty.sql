-- drop: DROP FUNCTION IF EXISTS loracomp.queue_is_empty(text)
-- Reads only. Jobs for later don't count, but those that wait to be tried again do; what other workers hold does not.
CREATE FUNCTION loracomp.queue_is_empty(base_model text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
BEGIN ATOMIC
    SELECT NOT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.base_model = queue_is_empty.base_model
            AND NOT j.scheduled
    ) AND NOT EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.status = 'queued' AND j.base_model = queue_is_empty.base_model
            AND j.scheduled AND (j.run_at <= now() OR j.attempts > 0)
    );
END;
COMMENT ON FUNCTION loracomp.queue_is_empty IS
'Whether no job of a base model is due nor waits to be tried again: when a draining worker may leave.';
