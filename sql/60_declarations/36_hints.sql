-- Hints are keys of rows that were written; triggers note them (20_parts.sql). The oldest are handled first.
--   ask_hinted          asks the rows with these keys
--   thin_hints          deletes duplicate hints and scan requests while nothing can be asked

-- Handled hints leave dead tuples, which stay while any session has an old snapshot. To skip these, reading begins at the transaction hints_from. It
-- moves up to the oldest running transaction once all earlier hints are handled, because transactions that have ended write no more hints. It moves
-- seldom, because each move leaves a dead tuple as well. While the scan waits for transactions that may have changed a new column, hints of that time wait
-- too: such a row might be answered as it was before the change, and nothing would show that its answer is stale.
CREATE FUNCTION loracomp.ask_hinted(d loracomp.declaration) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    oldest CONSTANT bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    end_at CONSTANT timestamptz := clock_timestamp() + interval '0.2 seconds';
    hints tid[];
    keys jsonb;
    page record;
    handled integer := 0;
BEGIN
    -- Rows that somebody has locked get another hint, behind the others. So that they don't hold up the others, a page of them alone is followed by
    -- another page.
    LOOP
        hints := ARRAY(
            SELECT h.ctid FROM loracomp.answer_hint AS h
            WHERE h.declaration_id = d.id AND h.written_in >= greatest(d.hints_from, d.scan_after)
                AND h.written_in <> pg_current_xact_id()::text::bigint
            ORDER BY h.written_in LIMIT 200
        );
        EXIT WHEN hints = '{}';
        SELECT jsonb_agg(DISTINCT jsonb_build_object('key', h.key)) INTO keys FROM loracomp.answer_hint AS h WHERE h.ctid = ANY (hints);
        page := loracomp.ask_page(d, loracomp.read_rows(d, keys), is_scan => FALSE);
        DELETE FROM loracomp.answer_hint AS h
        WHERE h.ctid = ANY (hints) AND h.key IN (SELECT f.key FROM jsonb_to_recordset(page.asked_rows) AS f (key text[]));
        handled := page.handled;
        EXIT WHEN handled > 0 OR clock_timestamp() > end_at;
    END LOOP;
    IF oldest > d.hints_from + 100 AND NOT EXISTS (
        SELECT FROM loracomp.answer_hint AS h WHERE h.declaration_id = d.id AND h.written_in >= d.hints_from AND h.written_in < oldest
    ) THEN
        UPDATE loracomp.declaration AS a SET hints_from = oldest WHERE a.id = d.id;
    END IF;
    RETURN handled;
END
$$;
COMMENT ON FUNCTION loracomp.ask_hinted IS 'Makes jobs of rows that triggers have noted, and returns how many rows it has handled.';

-- A table that can't be read may be written to for months. A call looks at the 20,000 oldest hints, and at 20,000 from a random place on, so that
-- repeated calls find every hint that has a newer one for the same row. The settings are here because statistics that were made when all hints were of
-- one row let a scan of the whole table, for each hint, look as cheap as a look into the index of keys.
CREATE FUNCTION loracomp.thin_hints(d loracomp.declaration) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp SET enable_seqscan = off SET enable_sort = off SET jit = off
AS $$
    DELETE FROM loracomp.scan_request AS q
    WHERE q.ctid = ANY (ARRAY(
        SELECT o.ctid FROM loracomp.scan_request AS o WHERE o.declaration_id = d.id
        ORDER BY o.not_before DESC, o.ctid DESC OFFSET 1 LIMIT 100000
    ));
    WITH looked_at AS MATERIALIZED (
        SELECT o.*, row_number() OVER (PARTITION BY o.key ORDER BY o.written_in DESC, o.ctid DESC) AS ordinal
        FROM (
            SELECT DISTINCT f.* -- the two ranges may overlap
            FROM (
                VALUES (d.hints_from), (d.hints_from + (random() * (pg_current_xact_id()::text::bigint - d.hints_from))::bigint)
            ) AS b (written_from)
            CROSS JOIN LATERAL (
                SELECT h.ctid, h.key, h.written_in FROM loracomp.answer_hint AS h
                WHERE h.declaration_id = d.id AND h.written_in >= b.written_from ORDER BY h.written_in LIMIT 20000
            ) AS f
        ) AS o
    )
    DELETE FROM loracomp.answer_hint AS h
    WHERE h.ctid = ANY (ARRAY(
        SELECT o.ctid FROM looked_at AS o
        WHERE o.ordinal > 1 OR EXISTS (
            -- The LIMIT is here because one row may have a million hints. Only the index of keys has this order.
            SELECT FROM (
                SELECT n.declaration_id, n.key, n.written_in, n.ctid FROM loracomp.answer_hint AS n
                WHERE (n.declaration_id, n.key) >= (d.id, o.key) ORDER BY n.declaration_id, n.key LIMIT 20
            ) AS n
            WHERE n.declaration_id = d.id AND n.key = o.key AND (n.written_in, n.ctid) > (o.written_in, o.ctid)
        )
    ));
$$;
COMMENT ON FUNCTION loracomp.thin_hints IS
'Deletes all but one of the hints for the same row of a declaration, and all but one of the requests for a scan.';
