-- Lists declarations with their progress, and the rows of one.
--   list_answers
--     may_alter_answers         32_alter.sql
--     measuring, waits_for_measurements       35_measuring.sql
--     accuracy_of               an accuracy with its interval, in words
--     certainty_in_words
--       certainty               65_certain.sql
--       rows_to_draw            how many more rows must be drawn and corrected, in words
--       lower_promise           a lower promise that is kept already, in words
--     rows_to_scan              how many rows a scan will still ask; rows_without_job calls it too
--       estimated_rows          estimates a table's rows
--   list_answer_rows            a page of a declaration's rows
--     find_declaration          32_alter.sql
--   list_corrections            the corrected rows

-- Reads nothing. It is written in PL/pgSQL, because an SQL function would need bi.wilson_interval to exist already. Shares are numeric, because a
-- session may have other numbers written as 7e+01 (extra_float_digits). Picked rows get no percentage and no interval, because people mostly
-- pick wrong answers, so these rows are no sample of all rows.
CREATE FUNCTION loracomp.accuracy_of(hits bigint, n bigint, picked_hits bigint, picked bigint) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    RETURN coalesce(nullif(concat_ws(
        '; ',
        CASE WHEN n > 0 THEN (
            SELECT format(
                '%s %% (%s to %s, %s %s)', round(100.0 * hits / n), round(100 * w.low::numeric), round(100 * w.high::numeric), n,
                CASE n WHEN 1 THEN 'row' ELSE 'rows' END
            )
            FROM bi.wilson_interval(hits, n) AS w
        ) END,
        CASE WHEN picked > 0 THEN format('%s of %s picked rows right', picked_hits, picked) END
    ), ''), 'not yet known');
END
$$;
COMMENT ON FUNCTION loracomp.accuracy_of IS
'In words: the share of right answers among drawn rows with its 95 % interval, and how many of the rows that people picked were answered rightly.';

-- Counts rows only until there are enough. During a full scan nobody knows how many rows the table has. A row without an answer may get any choice.
CREATE FUNCTION loracomp.rows_to_draw(d loracomp.declaration, choice text, needed bigint, more text, counted boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT format(
        'not yet known: about %s%s %s drawn and corrected%s', rows_to_draw.needed, rows_to_draw.more,
        CASE rows_to_draw.needed WHEN 1 THEN 'row that is' ELSE 'rows that are' END,
        CASE WHEN rows_to_draw.counted AND d.scan IS NULL THEN (
            SELECT format(', but %s left', CASE count(*) WHEN 0 THEN 'none is' WHEN 1 THEN 'only 1 is' ELSE format('only %s are', count(*)) END)
            FROM (
                SELECT FROM loracomp.answer_row AS r
                WHERE r.declaration_id = d.id AND r.status IN ('waiting', 'answered') AND (r.correct IS NULL OR r.draw_number IS NULL)
                    AND (rows_to_draw.choice IS NULL OR r.answer = rows_to_draw.choice OR r.status = 'waiting')
                LIMIT rows_to_draw.needed
            ) AS l
            HAVING count(*) < rows_to_draw.needed
        ) END
    );
$$;
COMMENT ON FUNCTION loracomp.rows_to_draw IS
'In words, how many more rows must be drawn and corrected before a declaration, or one of its choices, can have a threshold, and whether it has so many.';

-- Reads only. An answer is only above the threshold of its own setup, as in the view. An answer of the declaration's own adapter has no setup, and
-- would have none if it were asked again.
CREATE FUNCTION loracomp.answers_above(d loracomp.declaration, choice text)
RETURNS TABLE (rows bigint, above bigint, of_other_setups bigint)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH found AS MATERIALIZED (SELECT c.* FROM loracomp.certainty(d) AS c WHERE c.choice IS NOT DISTINCT FROM answers_above.choice)
    SELECT
        count(*), count(*) FILTER (WHERE r.confidence > f.threshold AND f.is_lost IS NOT TRUE AND r.job_id > d.stale_to_job),
        count(*) FILTER (WHERE r.setup IS NOT NULL AND f.is_main IS NOT TRUE AND f.threshold IS NULL)
    FROM loracomp.answer_row AS r
    LEFT JOIN found AS f ON f.setup = r.setup
    WHERE r.declaration_id = d.id AND r.status = 'answered' AND r.correct IS NULL
        AND (answers_above.choice IS NULL OR r.answer = answers_above.choice);
$$;
COMMENT ON FUNCTION loracomp.answers_above IS
'Numbers of the answers of a declaration, or with one choice, that are not corrected: all, those above the threshold of their setup, and those of other '
'setups than most corrected rows have, if these have no threshold.';

-- Only four promises are tried: the more are tried, the likelier is one that seems to be kept by luck alone.
CREATE FUNCTION loracomp.lower_promise(d loracomp.declaration, choice text) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT format('; with certain => %s, %s of %s rows would be certain now', p.share, n.above, n.rows)
    FROM unnest('{0.95,0.9,0.85,0.8}'::double precision[]) AS p (share)
    CROSS JOIN LATERAL loracomp.answers_above(
        jsonb_populate_record(d, jsonb_build_object('certain', p.share)), lower_promise.choice
    ) AS n
    WHERE p.share < d.certain AND n.above > 0
    ORDER BY p.share DESC LIMIT 1;
$$;
COMMENT ON FUNCTION loracomp.lower_promise IS
'In words, the highest of four lower promises that makes rows of a declaration certain, and how many; null if none does.';

-- The number of rows below the threshold is counted only if somebody waits for it, because there may be millions.
CREATE FUNCTION loracomp.certainty_in_words(d loracomp.declaration, counted boolean) RETURNS text
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT CASE WHEN d.certain IS NOT NULL THEN coalesce(string_agg(
        concat(
            c.choice || ': ', CASE
                WHEN c.is_lost THEN format('no longer certain: too many of the latest answers above %s are wrong', round(greatest(c.threshold, 0)::numeric, 3))
                WHEN c.threshold IS NOT NULL THEN format(
                    '%s of answers above %s are right%s', loracomp.accuracy_of(c.right_above, c.above, 0, 0), round(greatest(c.threshold, 0)::numeric, 3),
                    CASE WHEN counted THEN format('; %s of %s rows are not above it', n.rows - n.above, n.rows) END
                )
                WHEN c.left_out > 0 AND c.rows >= loracomp.first_look(d.certain)
                    THEN format('not yet known: %s rows that were drawn are not corrected', c.left_out)
                ELSE concat(
                    loracomp.rows_to_draw(
                        d, c.choice, greatest(2 * loracomp.rows_to_look_at(c.rows), loracomp.first_look(d.certain)) - c.rows, ' more', counted
                    ),
                    CASE WHEN counted THEN loracomp.lower_promise(d, c.choice) END
                )
            END,
            CASE WHEN n.of_other_setups > 0
                THEN format('; %s rows were answered in another way: ask them again by alter_answers(again => true)', n.of_other_setups)
            END
        ), '; ' ORDER BY c.choice
    ), loracomp.rows_to_draw(d, NULL, loracomp.first_look(d.certain), '', counted)) END
    FROM loracomp.certainty(d) AS c
    LEFT JOIN LATERAL loracomp.answers_above(d, c.choice) AS n ON certainty_in_words.counted
    WHERE c.is_main;
$$;
COMMENT ON FUNCTION loracomp.certainty_in_words IS
'In words, what a declaration''s corrected rows show about the setup that most of them have; null if nothing is promised. With `counted`, uncorrected rows are counted too.';

-- Reads only the catalog and statistics, and locks nothing, because everybody's queue_health and the workers' metrics call it. Before the first
-- ANALYZE reltuples is unknown, so the count of live tuples is used too.
CREATE FUNCTION loracomp.estimated_rows(source regclass) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT coalesce(sum(greatest(c.reltuples::bigint, pg_stat_get_live_tuples(c.oid))), 0)::bigint FROM pg_class AS c
    WHERE c.relkind = 'r' AND c.oid IN (SELECT estimated_rows.source UNION SELECT p.part FROM loracomp.parts_of(estimated_rows.source) AS p);
$$;
COMMENT ON FUNCTION loracomp.estimated_rows IS 'Estimated number of rows of a table with its partitions.';

-- Reads only. A scan asks all rows if they were in the table before the declaration, or if all are answered again. How many rows another scan will
-- ask is not known, and most find none.
CREATE FUNCTION loracomp.rows_to_scan(d loracomp.declaration) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT CASE WHEN d.scan = 'rows' AND (d.is_first_scan AND d.backfill OR d.stale_to_job > 0)
        THEN greatest(loracomp.estimated_rows(d.source) - d.scan_rows, 0) ELSE 0
    END;
$$;
COMMENT ON FUNCTION loracomp.rows_to_scan IS 'Estimated number of rows that a declaration''s full scan has still to handle.';

-- Reads only.
CREATE FUNCTION loracomp.list_answers(view regclass DEFAULT NULL, counted boolean DEFAULT TRUE) RETURNS TABLE (
    name regclass, source regclass, prompt text, state text, rows bigint, open bigint, answered bigint, stale bigint,
    refused bigint, failed bigint, corrected bigint, per_minute double precision, time_left interval,
    task text, before text, after text, advice text, choices text[], descriptions text[], channel text,
    certain text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
    SELECT
        a.view, a.source, a.prompt,
        CASE
            WHEN a.paused THEN 'paused'
            WHEN a.trouble IS NOT NULL THEN a.trouble
            WHEN a.scan = 'rows' AND a.scan_after > 0 THEN 'waiting for open transactions that have written to the table; then all rows are scanned'
            WHEN a.scan IS NOT NULL AND NOT loracomp.waits_for_measurements(a) THEN 'scanning all rows'
            WHEN g.measured < g.total THEN format('measuring %s of %s', g.measured, g.total)
                || coalesce(', about ' || CASE
                    WHEN g.seconds_left < 120 THEN ceil(g.seconds_left::numeric) || ' s' ELSE ceil(g.seconds_left::numeric / 60) || ' min'
                END, '')
                || CASE WHEN a.scan IS NOT NULL THEN '; then all rows are answered again' ELSE '' END
            ELSE 'ready'
        END,
        s.rows, c.waiting + w.written + w.scanned, c.answered, o.stale, c.refused, c.failed, k.corrected, m.per_minute,
        -- At most 100 years, because clients can't read the longest intervals.
        CASE WHEN m.per_minute > 0 THEN interval '1 minute' * round(least(
            (c.waiting + w.written + w.to_scan) / m.per_minute, 100 * 365.0 * 24 * 60
        )) END,
        t.name,
        loracomp.accuracy_of(k.right_before, k.known_before, k.picked_right_before, k.picked_before),
        loracomp.accuracy_of(k.right_after, k.known_after, k.picked_right_after, k.picked_after),
        CASE WHEN k.corrected >= 80 AND NOT EXISTS (SELECT FROM loracomp.adapter AS o WHERE o.task_id = a.task_id)
            THEN format('%s corrections can train an adapter of their own: loracomp answers train %s', k.corrected, a.view)
        END,
        a.choices, a.descriptions, loracomp.answers_channel(a.id),
        loracomp.certainty_in_words(a, list_answers.counted)
    FROM loracomp.declaration AS a
    LEFT JOIN loracomp.task AS t ON t.id = a.task_id
    CROSS JOIN LATERAL loracomp.measuring(a) AS g
    CROSS JOIN LATERAL (
        -- Each status is counted alone, because the index answer_row_progress is then enough.
        SELECT
            sum(n.rows)::bigint AS known,
            sum(n.rows) FILTER (WHERE u.status = 'waiting')::bigint AS waiting,
            sum(n.rows) FILTER (WHERE u.status = 'answered')::bigint AS answered,
            sum(n.rows) FILTER (WHERE u.status = 'refused')::bigint AS refused,
            sum(n.rows) FILTER (WHERE u.status = 'failed')::bigint AS failed,
            sum(l.rows)::bigint AS lately,
            sum(l.last_minute)::bigint AS last_minute
        FROM unnest('{waiting,answered,refused,failed,skipped}'::text[]) AS u (status)
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows FROM loracomp.answer_row AS r
            WHERE list_answers.counted AND r.declaration_id = a.id AND r.status = u.status
        ) AS n
        CROSS JOIN LATERAL (
            SELECT count(*) AS rows, count(*) FILTER (WHERE r.answered_at > now() - interval '1 minute') AS last_minute
            FROM loracomp.answer_row AS r
            WHERE list_answers.counted AND r.declaration_id = a.id AND r.status = u.status
                AND r.answered_at > now() - interval '5 minutes'
        ) AS l
    ) AS c
    CROSS JOIN LATERAL (
        SELECT (CASE WHEN c.last_minute >= 10 THEN c.last_minute ELSE c.lately / 5.0 END)::double precision AS per_minute
    ) AS m
    CROSS JOIN LATERAL (
        SELECT count(*) AS stale FROM loracomp.answer_row AS r
        WHERE list_answers.counted AND r.declaration_id = a.id AND r.status = 'waiting'
            AND r.answered_at IS NOT NULL AND r.answer IS NOT NULL
    ) AS o
    CROSS JOIN LATERAL (
        -- Rows that were written and not looked at yet. How many rows a scan will find is not known, so it counts as one.
        SELECT
            (
                SELECT count(DISTINCT h.key) FROM loracomp.answer_hint AS h
                WHERE list_answers.counted AND h.declaration_id = a.id AND h.written_in >= a.hints_from AND NOT EXISTS (
                    SELECT FROM loracomp.answer_row AS r WHERE r.declaration_id = a.id AND r.key = h.key AND r.status = 'waiting'
                )
            ) AS written,
            (list_answers.counted AND (a.scan = 'rows' AND (a.backfill OR NOT a.is_first_scan) OR loracomp.must_scan(a)) IS TRUE)::integer AS scanned,
            loracomp.rows_to_scan(a) AS to_scan
    ) AS w
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS corrected,
            -- People mostly correct wrong answers, so rows that they picked and rows that were drawn at random are counted separately.
            count(*) FILTER (WHERE r.draw_number IS NOT NULL AND r.first_answer = r.correct) AS right_before,
            count(*) FILTER (WHERE r.draw_number IS NOT NULL AND r.first_answer IS NOT NULL) AS known_before,
            count(*) FILTER (WHERE r.draw_number IS NOT NULL AND r.answer = r.correct AND r.answered_by = 'corrections') AS right_after,
            count(*) FILTER (WHERE r.draw_number IS NOT NULL AND r.answered_by = 'corrections') AS known_after,
            count(*) FILTER (WHERE r.draw_number IS NULL AND r.first_answer = r.correct) AS picked_right_before,
            count(*) FILTER (WHERE r.draw_number IS NULL AND r.first_answer IS NOT NULL) AS picked_before,
            count(*) FILTER (WHERE r.draw_number IS NULL AND r.answer = r.correct AND r.answered_by = 'corrections') AS picked_right_after,
            count(*) FILTER (WHERE r.draw_number IS NULL AND r.answered_by = 'corrections') AS picked_after
        FROM loracomp.answer_row AS r WHERE r.declaration_id = a.id AND r.example_id IS NOT NULL -- each corrected row has an example
    ) AS k
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN a.scan = 'rows' THEN greatest(c.known, loracomp.estimated_rows(a.source))
            ELSE c.known
        END AS rows
    ) AS s
    WHERE (list_answers.view IS NULL OR a.view = list_answers.view)
        AND loracomp.may_alter_answers(a)
    ORDER BY a.id;
$$;
COMMENT ON FUNCTION loracomp.list_answers IS
'The caller''s declarations (for an administrator: all) with their progress. During a full scan, the number of rows is an estimate. '
'Without `counted`, only corrected rows are counted, and the other numbers are 0.';

-- Reads only. It doesn't use the declaration's view, because its owner may have changed it so that it runs code with the reader's rights. Keys are
-- ordered by the types of the table's columns, which are built in, so that 2 comes before 10.
CREATE FUNCTION loracomp.list_answer_rows(name regclass, after text[] DEFAULT NULL, n integer DEFAULT 50)
RETURNS TABLE (
    key text[], prompt text, answer text, confidence double precision, status text, reason text, answered_by text,
    correct text, job_id bigint
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.with_current_names(loracomp.find_declaration(list_answer_rows.name));
BEGIN
    PERFORM loracomp.check_range('n', list_answer_rows.n, 1, 10000);
    RETURN QUERY EXECUTE format(
        'SELECT
            a.key, (SELECT left(j.prompt, 1000) FROM loracomp.job AS j WHERE j.id = a.job_id), -- it may have been purged
            left(a.answer, 1000), a.confidence, a.status, a.reason, a.answered_by, a.correct, a.job_id
        FROM (
            SELECT a.key FROM loracomp.answer_row AS a -- only keys are sorted, because there may be millions of rows
            WHERE a.declaration_id = %1$s AND ($1 IS NULL OR (%2$s) > (%3$s)) ORDER BY %2$s LIMIT $2
        ) AS k
        JOIN loracomp_parts.answers_%1$s AS a ON a.key = k.key ORDER BY %2$s',
        d.id, loracomp.key_values(d, 'a.key'), loracomp.key_values(d, '$1')
    ) USING list_answer_rows.after, list_answer_rows.n;
END
$$;
COMMENT ON FUNCTION loracomp.list_answer_rows IS 'A page of a declaration''s rows that have been handled so far, in key order, after a key.';

-- Reads only. Like list_answer_rows, it doesn't use the view.
CREATE FUNCTION loracomp.list_corrections(name regclass) RETURNS TABLE (key text[], answer text, correct text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d CONSTANT loracomp.declaration := loracomp.with_current_names(loracomp.find_declaration(list_corrections.name));
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT r.key, r.answer, r.correct FROM loracomp.answer_row AS r
        WHERE r.declaration_id = $1 AND r.example_id IS NOT NULL ORDER BY %s', loracomp.key_values(d, 'r.key')
    ) USING d.id;
END
$$;
COMMENT ON FUNCTION loracomp.list_corrections IS 'The corrected rows of a declaration with their answers, in key order.';
