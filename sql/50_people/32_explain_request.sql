-- drop: DROP FUNCTION IF EXISTS loracomp.explain_request(loracomp.job)
-- Reads only.
CREATE FUNCTION loracomp.explain_request(job loracomp.job)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    'Prompt: ' || loracomp.shorten(job.prompt, 240),
    'Choices: ' || (
        SELECT string_agg(loracomp.shorten(c.choice, 60), ' | ' ORDER BY c.place) FILTER (WHERE c.place <= 8)
            || CASE WHEN count(*) > 8 THEN format(' | ... %s more', count(*) - 8) ELSE '' END
        FROM unnest(job.choices) WITH ORDINALITY AS c (choice, place)
    ),
    'Expected: ' || loracomp.shorten(job.expected, 240),
    'Excluded tasks: ' || nullif(array_to_string(job.exclude_tasks, ', '), '')
);
END;
COMMENT ON FUNCTION loracomp.explain_request IS 'What a job asks, for explain_job.';
