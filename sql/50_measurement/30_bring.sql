-- Stores measurements that a library contains.
--   add_measurements            stores the gains of adapters on a task's examples
--     has_learnt_from

-- Inserts measurements, or adds missing adapters to existing ones; changes nothing else. Adapters are identified by their
-- digests, because the same file with another scaling has other gains. Gains are skipped if the adapter or the example is not in
-- the database, or if the adapter was trained on the example.
CREATE FUNCTION loracomp.add_measurements(
    task text,
    base_model text,
    choice_normalization text,
    content_hashes bytea[],
    base_scores double precision[],
    bases_are_right boolean[],
    adapter_digests text[],
    gains real[],
    are_right boolean[]
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    model CONSTANT loracomp.base_model := loracomp.find_base_model(add_measurements.base_model);
    columns CONSTANT integer := cardinality(add_measurements.adapter_digests);
    added bigint;
BEGIN
    IF (
        cardinality(content_hashes) = ALL (ARRAY[cardinality(base_scores), cardinality(bases_are_right)])
        AND cardinality(content_hashes) * columns = ALL (ARRAY[cardinality(gains), cardinality(add_measurements.are_right)])
    ) IS NOT TRUE THEN
        RAISE EXCEPTION 'base_scores and bases_are_right must have one element for each of content_hashes, gains and '
            'are_right one for each of them and each of adapter_digests' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH found AS (
        SELECT
            e.id, e.task_id, h.base_score, h.base_is_right,
            array_agg(a.id ORDER BY a.id) AS adapter_ids,
            array_agg(g.gain ORDER BY a.id) AS gains,
            array_agg(g.is_right ORDER BY a.id) AS are_right
        FROM unnest(
            add_measurements.content_hashes, add_measurements.base_scores, add_measurements.bases_are_right
        ) WITH ORDINALITY AS h (content_hash, base_score, base_is_right, ordinal)
        JOIN loracomp.task AS t ON t.name = add_measurements.task
        JOIN loracomp.example AS e ON e.task_id = t.id AND e.content_hash = h.content_hash
        JOIN unnest(add_measurements.gains, add_measurements.are_right) WITH ORDINALITY AS g (gain, is_right, ordinal)
            ON (g.ordinal - 1) / columns = h.ordinal - 1 AND g.gain IS NOT NULL
        JOIN loracomp.adapter AS a
            ON a.base_model_id = model.id
            AND a.digest = add_measurements.adapter_digests[1 + (g.ordinal - 1) % columns]
        JOIN loracomp.task AS o ON o.id = a.task_id
        LEFT JOIN loracomp.measurement AS m ON m.example_id = e.id AND m.base_model_id = model.id
        WHERE NOT loracomp.has_learnt_from(a.training, o.name, t.name, e.split, e.content_hash)
            AND (m.example_id IS NULL OR (
                m.choice_normalization = add_measurements.choice_normalization AND NOT m.chat_template
                AND a.id <> ALL (m.adapter_ids)
            ))
        GROUP BY e.id, h.ordinal, h.base_score, h.base_is_right
    )
    INSERT INTO loracomp.measurement AS m (
        example_id, base_model_id, task_id, choice_normalization, base_score, base_is_right, adapter_ids, gains, are_right
    )
    SELECT
        f.id, model.id, f.task_id, add_measurements.choice_normalization, f.base_score, f.base_is_right, f.adapter_ids,
        f.gains, f.are_right
    FROM found AS f
    ON CONFLICT ON CONSTRAINT an_example_has_one_measurement_a_base_model DO UPDATE SET
        adapter_ids = m.adapter_ids || excluded.adapter_ids,
        gains = m.gains || excluded.gains,
        are_right = m.are_right || excluded.are_right,
        measured_at = now();
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END
$$;
COMMENT ON FUNCTION loracomp.add_measurements IS
'Stores the gains of adapters on a task''s examples, from a library; returns the number of examples that got new gains. Adapters '
'are identified by their digests. gains and are_right have the values of all examples concatenated, each example''s in '
'the order of adapter_digests; null if an adapter was not measured.';
