-- drop: DROP FUNCTION IF EXISTS loracomp.explain_run(loracomp.prediction)
-- Reads only.
CREATE FUNCTION loracomp.explain_run(prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT concat_ws(
    E'\n',
    'Time of its batch: ' || (
        SELECT
            string_agg(
                format('%s %s ms', t.key, round(t.value::numeric, 1)), ', '
                ORDER BY array_position('{claim,encode,route,load,ready,compose,predict,record}', t.key)
            )
        FROM jsonb_each_text(prediction.timings) AS t
    ) || format(' (batch of %s on %s, worker %s)', prediction.batch_size, prediction.device, prediction.worker),
    format('Tokens: %s of the prompt, %s scored or generated', prediction.prompt_tokens, prediction.output_tokens),
    format(
        'Versions: base model %s (%s...), encoder %s, loracomp %s; composition %s...',
        prediction.base_model, left(prediction.base_fingerprint, 12), prediction.encoder, prediction.code_version,
        left(prediction.composition_digest, 12)
    )
)
WHERE prediction.job_id IS NOT NULL;
END;
COMMENT ON FUNCTION loracomp.explain_run IS 'Times, tokens and versions behind a job''s answer, for explain_job.';
