-- How far the measuring of a declaration's corrections has got.
--   measuring                   list_answers shows it: 75_list.sql
--   waits_for_measurements      whether a scan has not begun because of it; scan_is_due calls it too: 37_scan.sql

-- Reads only. A correction that waits for its embedding or for its job counts as being measured too. A correction whose job has failed doesn't
-- count, because it is not measured again. No correction without a job counts while the declaration is paused, or while the keeper rests because
-- there was nothing to insert.
CREATE FUNCTION loracomp.measuring(
    d loracomp.declaration, OUT measured bigint, OUT total bigint, OUT seconds_left double precision
)
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    WITH correction AS (
        SELECT
            m.measured_at, j.created_at,
            m.measured_at IS NULL AND CASE
                WHEN j.id IS NOT NULL THEN j.finished_at IS NULL
                ELSE NOT d.paused AND d.measure_at <= now() AND count(*) OVER () >= 8
            END AS is_open
        FROM loracomp.example AS e
        LEFT JOIN loracomp.measurement AS m
            ON m.example_id = e.id AND m.base_model_id = (SELECT b.id FROM loracomp.base_model AS b WHERE b.is_default)
        LEFT JOIN LATERAL (
            SELECT o.id, o.created_at, o.finished_at FROM loracomp.job AS o
            WHERE o.kind = 'measure' AND o.example_id = e.id ORDER BY o.id DESC LIMIT 1
        ) AS j ON TRUE
        WHERE e.task_id = d.task_id AND e.split = 'train'
    ),
    counted AS (
        SELECT
            count(c.measured_at) AS measured, count(*) FILTER (WHERE c.is_open) AS open,
            count(*) FILTER (WHERE c.measured_at > now() - interval '5 minutes') AS lately,
            greatest(
                min(c.created_at) FILTER (WHERE c.is_open OR c.measured_at > now() - interval '5 minutes'), now() - interval '5 minutes'
            ) AS since
        FROM correction AS c
    )
    SELECT c.measured, c.measured + c.open, c.open * loracomp.seconds_between(c.since, now()) / nullif(c.lately, 0) FROM counted AS c;
$$;
COMMENT ON FUNCTION loracomp.measuring IS
'How many of a declaration''s corrections are measured; how many are measured or still being measured; and about how many seconds the rest will '
'take at the rate of the last five minutes, null if none was measured in that time.';

-- Reads only. alter_answers sets waits_until when all rows are to be answered again, because rows that were asked at once would be answered
-- without the corrections that somebody has just made, and not be asked a second time. If waits_until is more than ten minutes ahead, the server's
-- clock has gone back.
CREATE FUNCTION loracomp.waits_for_measurements(d loracomp.declaration) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = loracomp, pg_temp
AS $$
    SELECT d.scan = 'rows' AND d.scan_position IS NULL AND d.waits_until BETWEEN now() AND now() + interval '10 minutes'
        AND (SELECT m.measured < m.total FROM loracomp.measuring(d) AS m);
$$;
COMMENT ON FUNCTION loracomp.waits_for_measurements IS
'Whether answering all rows of a declaration again has not begun, because its corrections are being measured.';
