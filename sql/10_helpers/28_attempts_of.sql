-- drop: DROP FUNCTION IF EXISTS loracomp.attempts_of(bigint)
-- Reads only, from the audit trail: an attempt is a change to running, and it ends with the job's next change. No row for
-- a job of somebody else.
CREATE FUNCTION loracomp.attempts_of(job_id bigint)
RETURNS TABLE (
    attempt integer, worker text, started_at timestamptz, ended_at timestamptz, next_status text, reason text
)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = loracomp, pg_temp
AS $$
    SELECT s.attempt, s.worker, s.at, s.ended_at, s.next_status, s.reason
    FROM (
        SELECT
            e.attempt,
            e.worker,
            e.at,
            e.new_status,
            lead(e.at) OVER w AS ended_at,
            lead(e.new_status) OVER w AS next_status,
            lead(e.reason) OVER w AS reason
        FROM loracomp.audit_event AS e
        WHERE e.entity = 'job' AND e.entity_id = attempts_of.job_id
        WINDOW w AS (ORDER BY e.id)
    ) AS s
    WHERE s.new_status = 'running' AND EXISTS (
        SELECT FROM loracomp.job AS j
        WHERE j.id = attempts_of.job_id AND (j.submitted_by = loracomp.caller() OR loracomp.caller_is_admin())
    );
$$;
COMMENT ON FUNCTION loracomp.attempts_of IS 'What loracomp.job_attempt rests on.';
