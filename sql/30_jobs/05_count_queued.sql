-- drop: DROP FUNCTION IF EXISTS loracomp.count_queued(name, bigint)
-- Reads only, and of the queue's indexes no more than at_most entries: 100,000 take 20 to 50 milliseconds. Jobs for later
-- stand in an index of their own: a query that says nothing of `scheduled` could use neither.
CREATE FUNCTION loracomp.count_queued(submitter name, at_most bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = loracomp, pg_temp
-- The same plan whatever the statistics say.
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    asked_by_evaluations bigint;
BEGIN
    IF count_queued.submitter <> '' THEN
        RETURN (
            SELECT count(*) FROM (
                SELECT FROM loracomp.base_model AS b
                CROSS JOIN LATERAL (
                    SELECT FROM loracomp.job AS j
                    WHERE j.status = 'queued' AND NOT j.scheduled
                        AND j.base_model = b.name AND j.submitted_by = count_queued.submitter
                    LIMIT count_queued.at_most
                ) AS j
                UNION ALL
                SELECT FROM loracomp.job AS j
                WHERE j.status = 'queued' AND j.scheduled AND j.submitted_by = count_queued.submitter
                LIMIT count_queued.at_most
            ) AS q
        );
    END IF;
    -- They stand behind everybody and keep nobody out.
    SELECT count(*) INTO asked_by_evaluations
    FROM (
        SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled AND j.evaluation IS NOT NULL
        UNION ALL
        SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled AND j.evaluation IS NOT NULL
    ) AS e;
    RETURN (
        SELECT count(*) - asked_by_evaluations FROM (
            SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND NOT j.scheduled
            UNION ALL
            SELECT FROM loracomp.job AS j WHERE j.status = 'queued' AND j.scheduled
            LIMIT count_queued.at_most + asked_by_evaluations
        ) AS q
    );
END
$$;
COMMENT ON FUNCTION loracomp.count_queued IS
'Waiting jobs of a submitter, or with an empty name of all but evaluations; no more than at_most are counted.';
