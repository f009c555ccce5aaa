-- Numbers of answers by the tags that analysts may see.
--   set_reported_tags             sets the keys of these tags
--   bi.job_tag                    each such tag of each job that ended
--   bi.answers_by_tag             numbers of answers by tag, label and day
--     loracomp.answers_by_tag     the stored numbers; refresh_reports() computes them

-- Replaces the list of keys. From now on every analyst sees the values of tags with these keys, and which choices were the
-- answers of jobs with such tags. Keys that are left out are not shown any more.
CREATE FUNCTION loracomp.set_reported_tags(keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
BEGIN
    IF set_reported_tags.keys IS NULL OR EXISTS (SELECT FROM unnest(set_reported_tags.keys) AS k (key) WHERE k.key IS NULL)
    THEN
        RAISE EXCEPTION 'keys must not be null' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'such as {country,product}; {} shows none';
    END IF;
    DELETE FROM loracomp.reported_tag AS r WHERE r.key <> ALL (set_reported_tags.keys);
    INSERT INTO loracomp.reported_tag (key)
    SELECT DISTINCT k.key FROM unnest(set_reported_tags.keys) AS k (key)
    ON CONFLICT ON CONSTRAINT reported_tag_pkey DO NOTHING;
END
$$;
COMMENT ON FUNCTION loracomp.set_reported_tags IS
'Sets the keys of the tags that analysts may see in bi, with the labels that were the answers of such jobs. {}: no tags.';

-- Reads only, with its owner's rights. One row for each tag, for joins with bi.prediction.
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
COMMENT ON COLUMN bi.job_tag.job_id IS 'Id of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.job_tag.value IS 'Value of the tag, as text.';
COMMENT ON COLUMN bi.job_tag.day IS 'Day in UTC on which the job ended.';
COMMENT ON COLUMN bi.job_tag.as_of IS 'Time of the data: the time of the query, because the view is live.';

-- Refreshed by refresh_reports(). Days of jobs that were purged are in it, as purge_jobs noted them.
CREATE MATERIALIZED VIEW loracomp.answers_by_tag AS
SELECT
    c.day,
    c.tag,
    c.value,
    c.label,
    c.policy,
    c.base_model,
    sum(c.n)::bigint AS n,
    sum(c.asked)::bigint AS asked,
    sum(c.correct)::bigint AS correct
FROM (
    SELECT
        a.day,
        a.tag,
        a.value,
        a.label,
        a.policy,
        a.base_model,
        count(*) AS n,
        count(*) FILTER (WHERE a.is_asked) AS asked,
        count(*) FILTER (WHERE a.is_asked AND a.is_correct) AS correct
    FROM loracomp.reported_answer AS a
    GROUP BY a.day, a.tag, a.value, a.label, a.policy, a.base_model
    UNION ALL
    SELECT
        t.day,
        t.tag,
        t.value,
        t.label,
        t.policy,
        t.base_model,
        t.n,
        t.asked,
        t.correct
    FROM loracomp.purged_tag AS t
) AS c
GROUP BY c.day, c.tag, c.value, c.label, c.policy, c.base_model;
CREATE UNIQUE INDEX answers_by_tag_key ON loracomp.answers_by_tag (day, tag, value, label, policy, base_model);
COMMENT ON MATERIALIZED VIEW loracomp.answers_by_tag IS 'Stored numbers that bi.answers_by_tag reads.';
COMMENT ON COLUMN loracomp.answers_by_tag.day IS 'Day in UTC on which the jobs were answered.';
COMMENT ON COLUMN loracomp.answers_by_tag.tag IS 'Key of the tag.';
COMMENT ON COLUMN loracomp.answers_by_tag.value IS 'Value of the tag as text, cut to 200 characters.';
COMMENT ON COLUMN loracomp.answers_by_tag.label IS 'The choice that was the answer; empty if the answer was generated text.';
COMMENT ON COLUMN loracomp.answers_by_tag.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.answers_by_tag.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.answers_by_tag.n IS 'Number of answers with this tag, value, label, policy and base model on this day, without evaluations.';
COMMENT ON COLUMN loracomp.answers_by_tag.asked IS 'Number of the answers (n) whose right answer is known.';
COMMENT ON COLUMN loracomp.answers_by_tag.correct IS 'Number of the answers (n) that equal the expected answer exactly.';

-- Reads only, with its owner's rights. A key that is removed from the list disappears at once, before the next refresh.
CREATE VIEW bi.answers_by_tag AS
SELECT
    a.day,
    a.tag,
    a.value,
    nullif(a.label, '') AS label,
    a.policy,
    a.base_model,
    a.n,
    a.asked,
    a.correct,
    (SELECT r.refreshed_at FROM loracomp.report_refresh AS r WHERE r.report = 'answers_by_tag') AS as_of
FROM loracomp.answers_by_tag AS a
INNER JOIN loracomp.reported_tag AS r ON a.tag = r.key;
COMMENT ON VIEW bi.answers_by_tag IS
'Number of answers of each day by tag (of set_reported_tags) and label. Without evaluations. Refreshed by refresh_reports, not live.';
COMMENT ON COLUMN bi.answers_by_tag.label IS
'The choice that was the answer, cut to 200 characters; null if the answer was generated text.';
COMMENT ON COLUMN bi.answers_by_tag.as_of IS 'When these numbers were computed last; later answers are not counted yet.';
