-- Reads only, with its owner's rights. From the first job to today, all in UTC. Days whose jobs were purged stay, because their
-- reports do.
CREATE VIEW bi.dim_date AS
SELECT
    d.day::date AS day,
    extract(ISOYEAR FROM d.day)::integer AS iso_year,
    extract(WEEK FROM d.day)::integer AS iso_week,
    extract(YEAR FROM d.day)::integer AS year,
    extract(QUARTER FROM d.day)::integer AS quarter,
    extract(MONTH FROM d.day)::integer AS month,
    extract(ISODOW FROM d.day)::integer AS weekday,
    extract(ISODOW FROM d.day) >= 6 AS is_weekend
FROM (
    -- Indexes give each of these times without a scan of a table.
    SELECT least(
        (SELECT j.created_at FROM loracomp.job AS j ORDER BY j.id LIMIT 1),
        (SELECT min(j.finished_at) FROM loracomp.job AS j),
        (SELECT min(d.day) FROM loracomp.report_day AS d)::timestamp AT TIME ZONE 'UTC',
        now()
    ) AT TIME ZONE 'UTC' AS first
) AS f
CROSS JOIN LATERAL generate_series(date_trunc('day', f.first), now() AT TIME ZONE 'UTC', '1 day') AS d (day);
COMMENT ON VIEW bi.dim_date IS
'Dimension: a row for every day from the first job, purged or not, to today, in UTC. Facts join it by day.';
COMMENT ON COLUMN bi.dim_date.day IS 'Key: the day, in UTC.';
COMMENT ON COLUMN bi.dim_date.iso_year IS 'Year of iso_week; it can differ from year in the first and last days of a year.';
COMMENT ON COLUMN bi.dim_date.iso_week IS 'ISO week, 1 to 53; weeks begin on Monday.';
COMMENT ON COLUMN bi.dim_date.year IS 'Calendar year.';
COMMENT ON COLUMN bi.dim_date.quarter IS 'Quarter of the year, 1 to 4.';
COMMENT ON COLUMN bi.dim_date.month IS 'Month of the year, 1 to 12.';
COMMENT ON COLUMN bi.dim_date.weekday IS 'Day of the week: 1 is Monday, 7 is Sunday.';
COMMENT ON COLUMN bi.dim_date.is_weekend IS 'Whether the day is a Saturday or a Sunday.';
