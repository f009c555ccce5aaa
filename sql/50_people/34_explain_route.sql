-- drop: DROP FUNCTION IF EXISTS loracomp.explain_route(loracomp.prediction)
-- Reads only.
CREATE FUNCTION loracomp.explain_route(prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n\n',
    format('Nearest examples (%s retrieved)', cardinality(prediction.example_ids)) || E'\n' || (
        SELECT
            string_agg(
                format(
                    '  %s  %s  %s', to_char(x.similarity, 'FM0.000'), rpad(x.task, x.width),
                    concat_ws(
                        ': ', coalesce(x.source_ref, format('example %s', x.example_id)), loracomp.shorten(x.prompt, 90)
                    )
                ),
                E'\n' ORDER BY x.place
            )
        FROM (
            SELECT r.*, max(char_length(r.task)) OVER () AS width
            FROM loracomp.retrieved_example AS r
            WHERE r.job_id = prediction.job_id AND r.place <= 8
        ) AS x
    ),
    format(
        'Tasks (policy %s: %s over similarities, temperature %s; nucleus over %s, top_p %s, at most %s adapters)',
        prediction.policy ->> 'name', prediction.policy ->> 'aggregation', prediction.policy ->> 'temperature',
        prediction.policy ->> 'nucleus', prediction.policy ->> 'top_p', prediction.policy ->> 'max_adapters'
    ) || E'\n' || (
        SELECT
            string_agg(
                format(
                    '  %s  probability %s  %s', rpad(t.task, t.width), to_char(t.probability, 'FM0.000'),
                    CASE WHEN t.weight > 0 THEN 'weight ' || to_char(t.weight, 'FM0.000') ELSE 'not composed' END
                ),
                E'\n' ORDER BY t.place
            )
        FROM (
            SELECT u.*, max(char_length(u.task)) OVER () AS width
            FROM unnest(prediction.tasks, prediction.probabilities, prediction.weights)
            WITH ORDINALITY AS u (task, probability, weight, place)
        ) AS t
    )
);
END;
COMMENT ON FUNCTION loracomp.explain_route IS
'The nearest examples of a job and what they made of its tasks, for explain_job.';
