-- What was answered, by the tags that analysts may see.
--   set_reported_tags             which keys
--   bi.job_tag                    each such tag of each job that ended
--   bi.answers_by_tag             answers and labels by day
--     loracomp.answers_by_tag     what it rests on; refresh_reports() works it out

-- Replaces the list of keys. What a key's tags hold, and which choice was the answer of jobs that carry it, every analyst sees
-- from now on; of a key that is left out, nobody does.
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
'Sets which tags analysts may see in bi, by key, with the labels that jobs with such a tag were given. {}: none.';

-- Reads only, with its owner's rights. One row a tag, for joins with bi.prediction.
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
'Fact: a row for each tag that set_reported_tags names, of every job that ended. Joins with bi.prediction by job_id.';
COMMENT ON COLUMN bi.job_tag.job_id IS 'Number of the job; joins with bi.prediction.';
COMMENT ON COLUMN bi.job_tag.tag IS 'The tag''s key.';
COMMENT ON COLUMN bi.job_tag.value IS 'Its value, as text.';
COMMENT ON COLUMN bi.job_tag.day IS 'Day on which the job ended, in UTC.';
COMMENT ON COLUMN bi.job_tag.as_of IS 'Up to when it counts: now, for it is live.';

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
COMMENT ON MATERIALIZED VIEW loracomp.answers_by_tag IS 'What bi.answers_by_tag rests on.';
COMMENT ON COLUMN loracomp.answers_by_tag.day IS 'Day of the answers, in UTC.';
COMMENT ON COLUMN loracomp.answers_by_tag.tag IS 'The tag''s key.';
COMMENT ON COLUMN loracomp.answers_by_tag.value IS 'Its value, as text, of 200 characters at most.';
COMMENT ON COLUMN loracomp.answers_by_tag.label IS 'The choice that was the answer; empty where text was generated.';
COMMENT ON COLUMN loracomp.answers_by_tag.policy IS 'Name of the settings of routing and merging.';
COMMENT ON COLUMN loracomp.answers_by_tag.base_model IS 'Frozen language model.';
COMMENT ON COLUMN loracomp.answers_by_tag.n IS 'Answers.';
COMMENT ON COLUMN loracomp.answers_by_tag.asked IS 'Those of which the right answer is known.';
COMMENT ON COLUMN loracomp.answers_by_tag.correct IS 'Those of them that were the expected ones, to the letter.';

-- Reads only, with its owner's rights. Of a key that was taken off the list, at once nothing any more.
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
'Answers of each day and their labels, by each tag that set_reported_tags names. Everyday jobs alone. Refreshed, not live.';
COMMENT ON COLUMN bi.answers_by_tag.label IS
'The choice that was the answer, of 200 characters at most; null where text was generated.';
COMMENT ON COLUMN bi.answers_by_tag.as_of IS 'When these numbers were computed last; later answers are not counted yet.';
