-- drop: DROP FUNCTION IF EXISTS loracomp.explain_composition(loracomp.prediction)
-- Reads only.
CREATE FUNCTION loracomp.explain_composition(prediction loracomp.prediction)
RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT CASE
    WHEN prediction.job_id IS NULL THEN NULL
    WHEN prediction.adapter_ids = '{}' THEN 'Composition: none, the base model alone: ' || prediction.fallback
    ELSE concat_ws(
        E'\n',
        format('Composition: %s', prediction.policy ->> 'strategy'),
        (
            SELECT
                string_agg(
                    format(
                        '  %s  %s', to_char(c.weight, 'FM0.000'),
                        coalesce(
                            c.adapter || ' version ' || c.version,
                            format('adapter %s of %s, sha256 %s...', c.adapter_id, c.task, left(c.sha256, 12))
                        )
                    ),
                    E'\n' ORDER BY c.place
                )
            FROM (
                SELECT a.*
                FROM loracomp.composed_adapter AS a
                WHERE a.job_id = prediction.job_id
            ) AS c
        ),
        format(
            '  against the exact weighted sum: norm ratio %s, cosine %s',
            round(prediction.norm_ratio::numeric, 3), round(prediction.cosine::numeric, 3)
        )
    )
END;
END;
COMMENT ON FUNCTION loracomp.explain_composition IS 'The adapters that answered a job, for explain_job.';
