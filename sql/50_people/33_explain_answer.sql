-- drop: DROP FUNCTION IF EXISTS loracomp.explain_answer(loracomp.job, loracomp.prediction)
-- Reads only.
CREATE FUNCTION loracomp.explain_answer(job loracomp.job, prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    'Answer: ' || loracomp.shorten(prediction.output, 240),
    format(
        'Scores (log-likelihood in nats%s, normalised by: %s)',
        ', less ' || nullif(prediction.policy ->> 'contrast', '0') || ' of the base model''s',
        prediction.policy ->> 'choice_normalization'
    )
    || E'\n' || (
        SELECT
            string_agg(
                format(
                    '%s %s  %s', CASE WHEN s.place = prediction.choice_index THEN '>' ELSE ' ' END,
                    to_char(s.score, '99990.000'), loracomp.shorten(s.choice, 80)
                ),
                E'\n' ORDER BY s.score DESC, s.place
            )
        FROM unnest(job.choices, prediction.choice_scores) WITH ORDINALITY AS s (choice, score, place)
        WHERE s.score IS NOT NULL
    )
);
END;
COMMENT ON FUNCTION loracomp.explain_answer IS 'A job''s answer and the score of each choice, for explain_job.';
