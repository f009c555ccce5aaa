-- Counts of answers by the tags that analysts may see.
--   set_reported_tags             sets the keys of these tags
--   bi.job_tag                    each such tag of each job that ended
--   bi.answers_by_tag             counts of answers by tag, choice and day
--     loracomp.answers_by_tag     the stored numbers, a table
--   answers_by_tag_on             computes a day of it

-- Replaces the list of keys. From then on every analyst sees the values of tags with these keys, and which choices were the answers to jobs
-- with such tags. Counts for keys that are no longer listed are deleted, even for days whose jobs are purged. It takes the same lock as
-- refresh_reports, because a refresh that is running would otherwise write these counts again.
CREATE FUNCTION loracomp.set_reported_tags(keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF set_reported_tags.keys IS NULL OR EXISTS (SELECT FROM unnest(set_reported_tags.keys) AS k (key) WHERE k.key IS NULL)
    THEN
        RAISE EXCEPTION 'keys must not be null' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'give a list such as {country,product}, or {} to show no tags';
    END IF;
    LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM loracomp.reported_tag AS r WHERE r.key <> ALL (set_reported_tags.keys);
    DELETE FROM loracomp.answers_by_tag AS a WHERE a.tag <> ALL (set_reported_tags.keys);
    INSERT INTO loracomp.reported_tag (key)
    SELECT DISTINCT k.key FROM unnest(set_reported_tags.keys) AS k (key)
    ON CONFLICT ON CONSTRAINT reported_tag_pkey DO NOTHING;
END
$$;
COMMENT ON FUNCTION loracomp.set_reported_tags IS
'Sets the keys of the tags that analysts may see in bi, together with the choices that were the answers to jobs with such tags. {}: no '
'tags.';

-- Reads only, with its owner's rights. One row for each tag, for joins with bi.prediction. Each value is looked up by a listed key, so a
-- reader's condition never sees the value of another key. The view therefore needs no security_barrier, which would make these joins slow.
CREATE VIEW bi.job_tag AS
SELECT
    j.id AS job_id,
    r.key AS tag,
    j.tags ->> r.key AS value,
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
    now() AS as_of
FROM loracomp.job AS j
INNER JOIN loracomp.reported_tag AS r ON jsonb_exists(j.tags, r.key)
WHERE j.finished_at IS NOT NULL AND j.tags ->> r.key IS NOT NULL;
COMMENT ON VIEW bi.job_tag IS
'Fact: a row for each tag of each job that ended, if its key is in set_reported_tags. Joins with bi.prediction by job_id.';
COMMENT ON COLUMN bi.job_tag.tag IS 'Key of a tag whose values analysts may see.';
COMMENT ON COLUMN bi.job_tag.value IS 'Value of the tag, as text.';
SELECT loracomp.copy_comments('bi.job_tag', 'bi.prediction');

-- Reads only. Generated text is not shown. Values and choices are cut to 200 characters, because an index can't contain long texts.
CREATE FUNCTION loracomp.answers_by_tag_on(day date) RETURNS SETOF loracomp.answers_by_tag
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT
    answers_by_tag_on.day,
    x.tag,
    x.value,
    x.choice,
    x.policy,
    x.base_model,
    count(*) AS n,
    count(*) FILTER (WHERE x.is_asked) AS asked,
    count(*) FILTER (WHERE x.is_asked AND x.is_correct) AS correct
FROM (
    SELECT
        r.key AS tag,
        left(j.tags ->> r.key, 200) AS value,
        CASE WHEN j.choices IS NULL THEN '' ELSE left(p.output, 200) END AS choice,
        j.policy,
        j.base_model,
        j.expected IS NOT NULL AS is_asked,
        j.is_correct
    FROM loracomp.jobs_on(answers_by_tag_on.day) AS j
    INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
    INNER JOIN loracomp.reported_tag AS r ON jsonb_exists(j.tags, r.key)
    WHERE j.status = 'succeeded' AND j.kind = 'predict' AND j.tags ->> r.key IS NOT NULL
) AS x
WHERE x.choice IS NOT NULL
GROUP BY x.tag, x.value, x.choice, x.policy, x.base_model;
END;
COMMENT ON FUNCTION loracomp.answers_by_tag_on IS 'Rows of loracomp.answers_by_tag for a day, computed from its jobs.';

-- Reads only, with its owner's rights. If the owner deletes a key directly from the table reported_tag, the key's rows
-- stay in loracomp.answers_by_tag, and only the join hides them. security_barrier makes the join run before a reader's
-- conditions, which could otherwise reveal the hidden rows.
CREATE VIEW bi.answers_by_tag WITH (security_barrier) AS
SELECT
    a.day,
    a.tag,
    a.value,
    nullif(a.choice, '') AS choice,
    a.policy,
    a.base_model,
    a.n,
    a.asked,
    a.correct,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r) AS as_of
FROM loracomp.answers_by_tag AS a
INNER JOIN loracomp.reported_tag AS r ON a.tag = r.key;
COMMENT ON VIEW bi.answers_by_tag IS
'Number of answers on each day, by choice and by the tags that set_reported_tags lists. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.answers_by_tag.choice IS
'The choice that was the answer, cut to 200 characters; null if the answer was generated text.';
SELECT loracomp.copy_comments('bi.answers_by_tag', 'loracomp.answers_by_tag', 'bi.accuracy_by_day');
