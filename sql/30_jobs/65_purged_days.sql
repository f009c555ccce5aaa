-- Sums by day (answers, costs, accuracy) that are kept when jobs are purged.
--   note_purged_days            adds the sums of jobs to purged_day and purged_tag; purge_jobs calls it
--     ended_job                 the values to sum up, one row for each job
--     reported_answer           a row for each reported tag of an answered job

-- Reads only; only for the owner's functions and reports, because it contains the names of hidden tasks.
CREATE VIEW loracomp.ended_job AS
SELECT
    j.id,
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
    j.submitted_by,
    j.policy,
    coalesce(p.base_model, j.base_model) AS base_model,
    j.evaluation,
    j.task AS own_task,
    j.status,
    j.attempts,
    coalesce(p.prompt_tokens, 0) AS prompt_tokens,
    coalesce(p.output_tokens, 0) AS output_tokens,
    coalesce(loracomp.compute_seconds(p.timings, p.batch_size), 0) AS compute_s,
    j.expected IS NOT NULL AND j.kind = 'predict' AS is_asked,
    j.is_correct
FROM loracomp.job AS j
LEFT JOIN loracomp.prediction AS p ON j.id = p.job_id
WHERE j.finished_at IS NOT NULL;
COMMENT ON VIEW loracomp.ended_job IS 'Jobs that ended, with the values that reports sum up. Granted to no role.';
COMMENT ON COLUMN loracomp.ended_job.day IS 'Day in UTC on which the job ended.';
COMMENT ON COLUMN loracomp.ended_job.base_model IS 'Base model that answered, or that the job asked for.';
COMMENT ON COLUMN loracomp.ended_job.prompt_tokens IS 'Number of tokens in the job''s prompt; 0 if it was not answered.';
COMMENT ON COLUMN loracomp.ended_job.output_tokens IS 'Number of tokens that were scored or generated; 0 if the job was not answered.';
COMMENT ON COLUMN loracomp.ended_job.compute_s IS 'The job''s share of the seconds that its batch took.';
COMMENT ON COLUMN loracomp.ended_job.is_asked IS 'Whether the job''s right answer is known.';

-- Reads only; without evaluations, whose jobs have no tags of users. A label is the chosen one of a job's choices; generated text
-- is no label. Values and labels are cut to 200 characters, because an index can't contain long texts.
CREATE VIEW loracomp.reported_answer AS
SELECT
    j.id,
    (j.finished_at AT TIME ZONE 'UTC')::date AS day,
    r.key AS tag,
    left(j.tags ->> r.key, 200) AS value,
    CASE WHEN j.choices IS NULL THEN '' ELSE left(p.output, 200) END AS label,
    j.policy,
    p.base_model,
    j.expected IS NOT NULL AS is_asked,
    j.is_correct
FROM loracomp.job AS j
INNER JOIN loracomp.prediction AS p ON j.id = p.job_id
INNER JOIN loracomp.reported_tag AS r ON jsonb_exists(j.tags, r.key)
WHERE j.status = 'succeeded' AND j.evaluation IS NULL AND j.kind = 'predict' AND j.tags ->> r.key IS NOT NULL;
COMMENT ON VIEW loracomp.reported_answer IS 'Answered jobs with each of their tags that analysts may see. Granted to no role.';
COMMENT ON COLUMN loracomp.reported_answer.day IS 'Day in UTC on which the job was answered.';
COMMENT ON COLUMN loracomp.reported_answer.value IS 'Value of the tag as text, cut to 200 characters.';
COMMENT ON COLUMN loracomp.reported_answer.label IS
'The choice that was the answer, cut to 200 characters; empty if the answer was generated text.';
COMMENT ON COLUMN loracomp.reported_answer.is_asked IS 'Whether the right answer is known.';

-- Adds the sums of the jobs that this transaction deletes to the sums of their days. Rows are written in the order of their keys,
-- so that two sessions that purge wait for each other and do not deadlock.
CREATE FUNCTION loracomp.note_purged_days(ids bigint[]) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = loracomp, pg_temp
AS $$
    INSERT INTO loracomp.purged_day AS d (
        day, submitted_by, policy, base_model, evaluation, own_task, jobs, succeeded, failed, attempts, prompt_tokens,
        output_tokens, compute_s, asked, n, correct
    )
    SELECT
        e.day, e.submitted_by, e.policy, e.base_model, e.evaluation, e.own_task, count(*),
        count(*) FILTER (WHERE e.status = 'succeeded'), count(*) FILTER (WHERE e.status = 'failed'), sum(e.attempts),
        sum(e.prompt_tokens), sum(e.output_tokens), sum(e.compute_s), count(*) FILTER (WHERE e.is_asked),
        count(*) FILTER (WHERE e.is_asked AND e.status = 'succeeded'), count(*) FILTER (WHERE e.is_asked AND e.is_correct)
    FROM loracomp.ended_job AS e
    WHERE e.id = ANY (note_purged_days.ids)
    GROUP BY e.day, e.submitted_by, e.policy, e.base_model, e.evaluation, e.own_task
    ORDER BY e.day, e.submitted_by, e.policy, e.base_model, e.evaluation, e.own_task
    ON CONFLICT ON CONSTRAINT sums_of_purged_jobs_stand_once_a_day DO UPDATE SET
        jobs = d.jobs + excluded.jobs,
        succeeded = d.succeeded + excluded.succeeded,
        failed = d.failed + excluded.failed,
        attempts = d.attempts + excluded.attempts,
        prompt_tokens = d.prompt_tokens + excluded.prompt_tokens,
        output_tokens = d.output_tokens + excluded.output_tokens,
        compute_s = d.compute_s + excluded.compute_s,
        asked = d.asked + excluded.asked,
        n = d.n + excluded.n,
        correct = d.correct + excluded.correct;
    INSERT INTO loracomp.purged_tag AS t (day, tag, value, label, policy, base_model, n, asked, correct)
    SELECT
        a.day, a.tag, a.value, a.label, a.policy, a.base_model, count(*), count(*) FILTER (WHERE a.is_asked),
        count(*) FILTER (WHERE a.is_asked AND a.is_correct)
    FROM loracomp.reported_answer AS a
    WHERE a.id = ANY (note_purged_days.ids)
    GROUP BY a.day, a.tag, a.value, a.label, a.policy, a.base_model
    ORDER BY a.day, a.tag, a.value, a.label, a.policy, a.base_model
    ON CONFLICT ON CONSTRAINT purged_tag_pkey DO UPDATE SET
        n = t.n + excluded.n, asked = t.asked + excluded.asked, correct = t.correct + excluded.correct;
$$;
COMMENT ON FUNCTION loracomp.note_purged_days IS
'Adds numbers, costs and accuracy of jobs to the sums of their days. purge_jobs calls it before it deletes the jobs.';
