-- Full scans of a table, page by page, find rows that were there before the declaration, and rows that the triggers missed.
--   ask_scanned         asks the rows of the next page
--     must_scan         whether a scan must begin
--       oldest_writer   answers_since calls it too
--     parts_are_due     whether the table's partitions must be compared with those of the last scan
--     parts_hash        tells whether they are the same
--     begin_scan        begins it; alter_answers, cancel_answers and bring_view_back call it too
--     scan_is_due       whether the next page may be read
--       waits_for_measurements      35_measuring.sql
--     add_triggers      20_parts.sql

-- Reads only. The next page waits until a job from the middle of the last page is claimed, so that the queue stays short. It doesn't wait for a job
-- of a base model that was the default before, because maybe no worker serves that one any more.
CREATE FUNCTION loracomp.scan_is_due(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT (d).scan IS NOT NULL AND (d).scan_after IS NULL AND NOT EXISTS (
        SELECT FROM loracomp.job AS j WHERE j.id = (d).scan_job AND j.status = 'queued'
            AND j.base_model = (SELECT b.name FROM loracomp.base_model AS b WHERE b.is_default)
    ) AND NOT loracomp.waits_for_measurements(d);
END;
COMMENT ON FUNCTION loracomp.scan_is_due IS 'Whether the next page of a declaration''s scan may be read.';

-- Reads only. A transaction of another database can't write here, so it is ignored, provided that loracomp's owner may see which database it
-- belongs to. A snapshot that lists no transaction may be of a standby, where none are listed, so the oldest of any database counts.
CREATE FUNCTION loracomp.oldest_writer() RETURNS bigint
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT coalesce(
        min(x.id::text::bigint) FILTER (WHERE NOT x.is_elsewhere),
        (CASE WHEN count(*) > 0 THEN pg_snapshot_xmax(pg_current_snapshot()) ELSE pg_snapshot_xmin(pg_current_snapshot()) END)::text::bigint
    )
    FROM (
        SELECT
            o.id, EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.backend_xid = o.id::xid AND a.datname <> current_database())
            OR EXISTS (
                SELECT FROM pg_prepared_xacts AS p WHERE p.transaction = o.id::xid AND p.database <> current_database()
            ) AS is_elsewhere
        FROM pg_snapshot_xip(pg_current_snapshot()) AS o (id)
    ) AS x;
$$;
COMMENT ON FUNCTION loracomp.oldest_writer IS 'The oldest transaction that may still write in this database; all earlier ones have ended.';

-- Reads only. A scan that is under way is finished first, because it might never end if each new request started it again. A scan runs at least
-- once a day, because triggers don't see what logical replication or ALTER TABLE writes, how an unlogged table is emptied after a crash, or
-- what is written while they are disabled. A scanned_at that is more than a day ahead was written before the server's clock went back.
CREATE FUNCTION loracomp.must_scan(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT (d).scan IS NULL AND (
        (d).scanned_at < now() - interval '1 day'
        OR (d).scanned_at > now() + interval '1 day'
        OR EXISTS (
            SELECT FROM loracomp.scan_request AS q
            WHERE q.declaration_id = (d).id AND q.not_before < (SELECT loracomp.oldest_writer())
        )
    );
END;
COMMENT ON FUNCTION loracomp.must_scan IS 'Whether a full scan of a declaration''s table must begin.';

-- Reads nothing, because due_declarations calls it for each declaration, and a table may have thousands of partitions. They are compared once a
-- minute, on the time of this declaration alone.
CREATE FUNCTION loracomp.parts_are_due(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT (d).parts IS NOT NULL AND (d).scan IS NULL
        AND (d).parts_at NOT BETWEEN now() - interval '1 minute' AND now() + interval '1 minute';
END;
COMMENT ON FUNCTION loracomp.parts_are_due IS 'Whether the partitions of a declaration''s table must be compared with those that its last scan has seen.';

-- Reads only the catalog, and locks nothing. A partition that was detached and attached again counts as another one, because rows may have been
-- written meanwhile; it is told by the transaction that attached it.
CREATE FUNCTION loracomp.parts_hash(source regclass) RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT (
        SELECT coalesce(bit_xor(hashoidextended(i.inhrelid, i.xmin::text::bigint)), 0)
        FROM loracomp.parts_of(parts_hash.source) AS p JOIN pg_inherits AS i ON i.inhrelid = p.part
    )
    FROM pg_class AS c WHERE c.oid = parts_hash.source AND c.relkind = 'p';
END;
COMMENT ON FUNCTION loracomp.parts_hash IS 'Hash of a table''s partitions; null if the table is not partitioned.';

CREATE FUNCTION loracomp.begin_scan(declaration_id integer) RETURNS loracomp.declaration
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    d loracomp.declaration;
BEGIN
    UPDATE loracomp.declaration AS a
    SET scan = 'rows', scan_position = NULL, scan_rows = 0, scan_job = NULL, waits_until = '-infinity', scanned_at = now(),
        parts = loracomp.parts_hash(a.source), parts_at = now()
    WHERE a.id = begin_scan.declaration_id RETURNING a.* INTO d;
    DELETE FROM loracomp.scan_request AS q
    WHERE q.declaration_id = d.id AND q.not_before < (SELECT loracomp.oldest_writer());
    RETURN d;
END
$$;
COMMENT ON FUNCTION loracomp.begin_scan IS 'Begins a full scan of a declaration''s table, or begins it anew.';

-- A scan reads the table in key order, and then the answers, because the rows of some answers may be gone. No trigger fires when a partition is
-- attached, detached or dropped, so a scan begins if there are others than before. Triggers are added here, because the keeper waits for nobody's lock
-- for long.
CREATE FUNCTION loracomp.ask_scanned(d loracomp.declaration) RETURNS integer
LANGUAGE plpgsql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    keys jsonb;
    page record;
BEGIN
    IF loracomp.must_scan(d) THEN
        d := loracomp.begin_scan(d.id);
    ELSIF loracomp.parts_are_due(d) THEN
        IF loracomp.parts_hash(d.source) <> d.parts THEN
            d := loracomp.begin_scan(d.id);
        ELSE
            UPDATE loracomp.declaration AS a SET parts_at = now() WHERE a.id = d.id;
        END IF;
    END IF;
    IF NOT loracomp.scan_is_due(d) THEN
        RETURN 0;
    END IF;
    IF d.scan = 'rows' AND d.scan_position IS NULL THEN
        PERFORM loracomp.add_triggers(d);
    END IF;
    IF d.scan = 'rows' THEN
        keys := loracomp.next_keys(d, d.scan_position, 200);
    ELSE
        SELECT coalesce(jsonb_agg(jsonb_build_object('key', r.key) ORDER BY r.key), '[]') INTO keys
        FROM (
            SELECT o.key FROM loracomp.answer_row AS o
            WHERE o.declaration_id = d.id AND o.key > coalesce(d.scan_position, '{}') ORDER BY o.key LIMIT 200
        ) AS r;
    END IF;
    IF keys = '[]' THEN
        UPDATE loracomp.declaration AS a SET
            scan = CASE d.scan WHEN 'rows' THEN 'answers' END, is_first_scan = d.is_first_scan AND d.scan = 'rows', stale_to_job = 0,
            scan_position = NULL, scan_job = NULL
        WHERE a.id = d.id;
        RETURN 1;
    END IF;
    page := loracomp.ask_page(d, loracomp.read_rows(d, keys), is_scan => TRUE);
    UPDATE loracomp.declaration AS a SET
        scan_position = ARRAY(SELECT jsonb_array_elements_text(page.asked_rows -> -1 -> 'key')),
        scan_rows = d.scan_rows + jsonb_array_length(page.asked_rows), scan_job = page.middle_job
    WHERE a.id = d.id;
    RETURN jsonb_array_length(page.asked_rows);
END
$$;
COMMENT ON FUNCTION loracomp.ask_scanned IS 'Makes jobs of the rows on the next page of a full scan, and returns how many rows it has handled.';
