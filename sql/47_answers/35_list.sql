-- What declarations have done so far:
--   list_answers
--     accuracy_of               a share with its interval, in words

-- Reads nothing. Not in SQL, which would look for bi.wilson_interval before it is there.
CREATE FUNCTION loracomp.accuracy_of(hits bigint, n bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF n < 20 THEN
        RETURN format('not yet known (%s of 20 rows)', n);
    END IF;
    RETURN (
        SELECT format('%s %% (%s to %s, %s rows)', round(100.0 * hits / n), round(100 * w.low), round(100 * w.high), n)
        FROM bi.wilson_interval(hits, n) AS w
    );
END
$$;
COMMENT ON FUNCTION loracomp.accuracy_of IS 'A share in percent with its 95 % interval, in words; not yet known below twenty rows.';

-- Reads only. It counts the answers, which takes a second for a million.
CREATE FUNCTION loracomp.list_answers() RETURNS TABLE (
    name regclass, source regclass, prompt text, state text, rows bigint, open bigint, answered bigint, stale bigint,
    refused bigint, failed bigint, corrected bigint, per_minute double precision, time_left interval,
    task text, before text, after text, advice text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT
        a.view, a.source, a.prompt,
        CASE
            WHEN a.paused THEN 'paused'
            WHEN a.trouble IS NOT NULL THEN a.trouble
            WHEN a.sweep IS NOT NULL THEN 'looking at all rows'
            ELSE 'ready'
        END,
        s.rows, c.open, c.answered, c.stale, c.refused, c.failed, c.corrected, c.lately / 5.0,
        make_interval(mins => ((c.open + greatest(s.rows - c.known, 0)) / nullif(c.lately / 5.0, 0))::integer),
        t.name, loracomp.accuracy_of(c.right_before, c.known_before), loracomp.accuracy_of(c.right_after, c.known_after),
        CASE WHEN c.corrected >= 100 AND NOT EXISTS (SELECT FROM loracomp.adapter AS o WHERE o.task_id = a.task_id)
            THEN format('%s corrections can train an adapter of their own: loracomp answers train %s', c.corrected, a.view)
        END
    FROM loracomp.answers AS a
    LEFT JOIN loracomp.task AS t ON t.id = a.task_id
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS known,
            count(*) FILTER (WHERE r.status = 'asked') AS open,
            count(*) FILTER (WHERE r.status = 'answered') AS answered,
            count(*) FILTER (WHERE r.status = 'asked' AND r.answer IS NOT NULL) AS stale,
            count(*) FILTER (WHERE r.status = 'refused') AS refused,
            count(*) FILTER (WHERE r.status = 'failed') AS failed,
            count(r.correct) AS corrected,
            -- People correct what is wrong, so only rows drawn at random tell how many are right.
            count(*) FILTER (WHERE r.drawn AND r.first_answer = r.correct) AS right_before,
            count(r.correct) FILTER (WHERE r.drawn AND r.first_answer IS NOT NULL) AS known_before,
            count(*) FILTER (WHERE r.drawn AND r.answer = r.correct AND r.answered_by LIKE '% corrections') AS right_after,
            count(r.correct) FILTER (WHERE r.drawn AND r.answered_by LIKE '% corrections') AS known_after,
            count(*) FILTER (WHERE r.answered_at > now() - interval '5 minutes') AS lately
        FROM loracomp.answer_row AS r WHERE r.answers_id = a.id
    ) AS c
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN a.sweep = 'source' THEN greatest(c.known, (SELECT t.reltuples::bigint FROM pg_class AS t WHERE t.oid = a.source))
            ELSE c.known
        END AS rows
    ) AS s
    WHERE loracomp.caller_is_admin() OR pg_has_role(loracomp.caller(), to_regrole(quote_ident(a.owner)), 'usage')
    ORDER BY a.id;
$$;
COMMENT ON FUNCTION loracomp.list_answers IS
'The caller''s declarations (an administrator''s call: all) with their progress. While rows that were there are still looked at, their '
'number is the planner''s estimate.';
