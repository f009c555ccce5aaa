-- Which rows people correct.
--   rows_to_correct
--     find_declaration      32_alter.sql

-- Rows are drawn at random, and marked as drawn, so that their accuracy is an estimate for all rows. Corrections of the least confident rows would
-- help less (docs/decisions.md). Rows that people have picked and corrected before can be drawn too, but are not returned: without them, the drawn
-- rows would have fewer wrong answers than all rows. A draw ends with the n-th row that is not corrected, and leaves out picked rows after it,
-- because otherwise the drawn rows would have too many picked rows. A stale row is not drawn until it is answered again. Rows that were drawn and
-- not corrected yet come first. Only the drawn rows are locked, because a client may leave the transaction open while somebody thinks about them.
-- Rows that were drawn before and are locked are passed over, because another draw has them. No other row is passed over, because a sample without the
-- rows that people are just correcting would make all answers look better than they are. Two draws may wait for each other, so none waits long.
CREATE FUNCTION loracomp.rows_to_correct(name regclass, n integer DEFAULT 16, visitor text DEFAULT NULL)
RETURNS TABLE (key text[], prompt text, answer text, confidence double precision, job_id bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = loracomp, pg_temp
SET lock_timeout = '500ms'
AS $$
#variable_conflict use_column
DECLARE
    d CONSTANT loracomp.declaration := loracomp.find_declaration(rows_to_correct.name);
    recent CONSTANT timestamptz := now() - interval '10 minutes';
    chosen bigint[];
    candidate bigint;
    taken bigint[] := '{}';
    seen bigint[] := '{}';
    missing integer := rows_to_correct.n;
    looked_at bigint := rows_to_correct.n; -- others may have locked thousands, so each turn looks at more
    are_the_visitors boolean;
    is_uncorrected boolean;
    known CONSTANT real := (SELECT c.reltuples FROM pg_class AS c WHERE c.oid = 'loracomp.answer_row'::regclass);
    percent real;
    numbers bigint[]; -- from a sequence, because a REPEATABLE READ transaction may not see the rows that were drawn last
BEGIN
    PERFORM loracomp.check_range('n', rows_to_correct.n, 1, 10000);
    chosen := ARRAY( -- the visitor's rows that are not corrected yet
        SELECT r.job_id FROM loracomp.answer_row AS r
        WHERE r.declaration_id = d.id AND r.draw_number IS NOT NULL AND r.visitor = rows_to_correct.visitor AND r.offered_at >= recent
            AND r.status = 'answered' AND r.correct IS NULL AND r.job_id > d.stale_to_job
            AND NOT EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id AND h.key = r.key)
        LIMIT rows_to_correct.n
    );
    are_the_visitors := chosen <> '{}';
    LOOP
        IF chosen = '{}' THEN
            -- If there are more than 100,000 rows, random pages are read first, and all rows only if these have too few.
            FOREACH percent IN ARRAY ARRAY[least(100, 1e7 / greatest(known, 1)), 100] LOOP
                chosen := ARRAY(
                    SELECT t.job_id
                    FROM (
                        SELECT o.job_id, row_number() OVER w AS ordinal, count(*) FILTER (WHERE o.correct IS NULL) OVER w AS uncorrected_before
                        FROM (
                            SELECT r.*, random() AS lot FROM loracomp.answer_row AS r
                            WHERE r.draw_number IS NOT NULL AND r.declaration_id = d.id
                            UNION ALL
                            SELECT r.*, random() AS lot FROM loracomp.answer_row AS r TABLESAMPLE SYSTEM (percent)
                            WHERE percent < 100 AND r.draw_number IS NULL AND r.declaration_id = d.id
                            UNION ALL -- by an index: most rows of the table may be of other declarations
                            SELECT r.*, random() AS lot FROM loracomp.answer_row AS r
                            WHERE percent = 100 AND r.draw_number IS NULL AND r.declaration_id = d.id
                        ) AS o
                        WHERE o.status = 'answered' AND (o.correct IS NULL OR o.draw_number IS NULL) AND (o.offered_at >= recent) IS NOT TRUE
                            AND o.job_id > d.stale_to_job AND NOT EXISTS (SELECT FROM unnest(seen) AS s (job_id) WHERE s.job_id = o.job_id)
                            AND NOT EXISTS (SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id AND h.key = o.key)
                        WINDOW w AS (ORDER BY o.draw_number, o.lot ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                    ) AS t
                    WHERE t.uncorrected_before < looked_at ORDER BY t.ordinal
                );
                EXIT WHEN percent = 100 OR missing <= (
                    SELECT count(*) FROM loracomp.answer_row AS r WHERE r.job_id = ANY (chosen) AND r.correct IS NULL
                );
            END LOOP;
        END IF;
        EXIT WHEN chosen = '{}';
        FOREACH candidate IN ARRAY chosen LOOP
            EXIT WHEN missing = 0;
            SELECT r.correct IS NULL INTO is_uncorrected FROM loracomp.answer_row AS r
            WHERE r.job_id = candidate AND r.draw_number IS NOT NULL
                AND (are_the_visitors OR (r.offered_at >= recent) IS NOT TRUE) -- another visitor may have got it a moment ago
            FOR UPDATE SKIP LOCKED;
            IF NOT found THEN
                SELECT r.correct IS NULL INTO is_uncorrected FROM loracomp.answer_row AS r
                WHERE r.job_id = candidate AND r.draw_number IS NULL FOR UPDATE;
            END IF;
            IF found THEN
                taken := taken || candidate;
                missing := missing - is_uncorrected::integer;
            END IF;
        END LOOP;
        EXIT WHEN missing = 0 OR are_the_visitors AND taken <> '{}';
        seen := seen || chosen;
        looked_at := looked_at * 16;
        are_the_visitors := FALSE;
        chosen := '{}';
    END LOOP;
    numbers := ARRAY(SELECT nextval('loracomp.drawn_rows') FROM unnest(taken));
    UPDATE loracomp.answer_row AS r SET
        draw_number = coalesce(r.draw_number, numbers[u.ordinal]), visitor = rows_to_correct.visitor,
        offered_at = CASE WHEN rows_to_correct.visitor IS NOT NULL THEN now() END
    FROM unnest(taken) WITH ORDINALITY AS u (job_id, ordinal)
    WHERE r.job_id = u.job_id;
    RETURN QUERY
    -- A job may have been purged. Each is looked up, because a join might read all jobs.
    SELECT r.key, (SELECT j.prompt FROM loracomp.job AS j WHERE j.id = r.job_id), r.answer, r.confidence, r.job_id
    FROM loracomp.answer_row AS r WHERE r.job_id = ANY (taken) AND r.correct IS NULL ORDER BY r.confidence, r.key;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'a transaction that is open has corrected or drawn one of the rows that would be drawn'
        USING ERRCODE = 'lock_not_available', HINT = 'try again when it has ended; whoever draws rows should commit before looking at them';
END
$$;
COMMENT ON FUNCTION loracomp.rows_to_correct IS 'Rows for people to correct, drawn at random. Nobody else gets a visitor''s rows for ten minutes.';
