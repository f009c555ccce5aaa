-- Corrections that somebody should look at again, and who has corrected how much.
--   rows_to_review
--   count_corrections

-- Reads only. A corrected row is answered without its own label, so its answer is what the other corrections say. If this answer differs from the
-- correction, and is at least as confident as right answers with this choice are on average, the correction may be wrong, as in confident
-- learning (Northcutt, Jiang and Chuang, 2021). The audit knows who has corrected a row, and whether the row had a correction before, but not
-- which one. There may be many thousands of corrections, also before the first ANALYZE, so a nested loop is never tried.
CREATE FUNCTION loracomp.rows_to_review(name regclass, n integer DEFAULT 50) RETURNS TABLE (
    key text[], prompt text, correct text, answer text, confidence double precision, people text[], job_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.find_declaration(rows_to_review.name);
BEGIN
    PERFORM loracomp.check_range('n', rows_to_review.n, 1, 10000);
    RETURN QUERY
    WITH corrected AS MATERIALIZED (
        SELECT r.*, r.answered_by = 'corrections' AND r.status = 'answered' AS is_compared
        FROM loracomp.answer_row AS r WHERE r.declaration_id = d.id AND r.example_id IS NOT NULL
    ),
    usual AS (
        SELECT c.answer, avg(c.confidence) AS confidence FROM corrected AS c WHERE c.is_compared AND c.answer = c.correct GROUP BY c.answer
    ),
    event AS MATERIALIZED (
        SELECT (e.after ->> 'job_id')::bigint AS job_id, e.actor::text AS actor, e.reason, e.id FROM loracomp.audit_event AS e
        WHERE e.entity = 'declaration' AND e.entity_id = d.id AND e.reason IN ('corrected', 'corrected otherwise')
    ),
    asked AS (
        SELECT c.key, unnest(c.earlier_jobs || c.job_id) AS job_id FROM corrected AS c
    ),
    step AS (
        SELECT
            a.key, v.actor, v.reason = 'corrected otherwise' AND v.actor <> lag(v.actor) OVER (PARTITION BY a.key ORDER BY v.id) AS differs
        FROM asked AS a JOIN event AS v ON v.job_id = a.job_id
    ),
    disputed AS (
        SELECT s.key, array_agg(DISTINCT s.actor) AS people FROM step AS s GROUP BY s.key HAVING bool_or(s.differs)
    )
    SELECT
        c.key, (SELECT left(j.prompt, 1000) FROM loracomp.job AS j WHERE j.id = c.job_id), -- it may have been purged
        c.correct, left(c.answer, 1000), c.confidence, p.people, c.job_id
    FROM corrected AS c
    LEFT JOIN usual AS u ON u.answer = c.answer
    LEFT JOIN disputed AS p ON p.key = c.key
    WHERE p.key IS NOT NULL OR c.is_compared AND c.answer <> c.correct AND c.confidence >= u.confidence
    ORDER BY p.key IS NULL, c.confidence DESC, c.key LIMIT rows_to_review.n;
END
$$;
COMMENT ON FUNCTION loracomp.rows_to_review IS
'Corrected rows to look at again: rows that two people have corrected differently (people names them), and rows whose correction is contradicted, '
'with high confidence, by an answer that the other corrections have helped with.';

-- Reads only.
CREATE FUNCTION loracomp.count_corrections(name regclass) RETURNS TABLE (person text, corrected bigint, undone bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.find_declaration(count_corrections.name);
BEGIN
    RETURN QUERY
    SELECT e.actor::text, count(*) FILTER (WHERE e.reason <> 'correction taken back'), count(*) FILTER (WHERE e.reason = 'correction taken back')
    FROM loracomp.audit_event AS e
    WHERE e.entity = 'declaration' AND e.entity_id = d.id AND e.reason IN ('corrected', 'corrected otherwise', 'correction taken back')
    GROUP BY e.actor ORDER BY 2 DESC, 1;
END
$$;
COMMENT ON FUNCTION loracomp.count_corrections IS 'How often each person has corrected a row of a declaration, and taken a correction back.';
