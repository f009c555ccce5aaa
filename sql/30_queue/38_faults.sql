-- What an answer may contain. A trigger checks it, as it checks jobs: 11_faults.sql says why. Reports cast and add up these values, and have names in
-- their keys, so the rules prevent a faulty worker from breaking them.
--   trigger refuse_faulty       on loracomp.prediction
--     is_list

-- Postgres takes no BEGIN ATOMIC for arrays of any type, and puts the body into the caller's expression only if the function sets no search path. So
-- the names in it are written with their schema.
CREATE FUNCTION loracomp.is_list(given anyarray) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(
        pg_catalog.array_ndims(given) OPERATOR(pg_catalog.=) 1 AND pg_catalog.array_lower(given, 1) OPERATOR(pg_catalog.=) 1
        AND pg_catalog.cardinality(given) OPERATOR(pg_catalog.<=) 1000 AND pg_catalog.num_nulls(VARIADIC given) OPERATOR(pg_catalog.=) 0,
        TRUE
    );
$$;
COMMENT ON FUNCTION loracomp.is_list IS
'Whether an array has at most 1,000 elements, one dimension, 1 as its first index and no nulls, or is empty or null.';

CREATE FUNCTION loracomp.refuse_faulty_prediction() RETURNS trigger
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    broken CONSTANT text := CASE
        WHEN NOT loracomp.is_list(new.example_ids) THEN 'example_ids_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.example_tasks) THEN 'example_tasks_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.similarities) THEN 'similarities_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.tasks) THEN 'tasks_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.probabilities) THEN 'probabilities_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.weights) THEN 'weights_must_be_a_list_of_at_most_1000'
        WHEN array_ndims(new.expected_gains) <> 1 OR array_lower(new.expected_gains, 1) <> 1 OR cardinality(new.expected_gains) > 1000
            THEN 'expected_gains_must_be_a_list_of_at_most_1000' -- an unmeasured gain is null
        WHEN NOT loracomp.is_list(new.composed_tasks) THEN 'composed_tasks_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.adapter_ids) THEN 'adapter_ids_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.adapter_sha256) THEN 'adapter_sha256_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.adapter_weights) THEN 'adapter_weights_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.calibration_examples) THEN 'calibration_examples_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.choice_scores) THEN 'choice_scores_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.choice_biases) THEN 'choice_biases_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.label_scores) THEN 'label_scores_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.score_weights) THEN 'score_weights_must_be_a_list_of_at_most_1000'
        WHEN NOT loracomp.is_list(new.description_similarities) THEN 'description_similarities_must_be_a_list_of_at_most_1000'

        WHEN cardinality(new.example_ids) <> ANY (ARRAY[cardinality(new.example_tasks), cardinality(new.similarities)])
            THEN 'each_example_has_a_task_and_a_similarity'
        WHEN
            cardinality(new.tasks) <> ANY (ARRAY[
                cardinality(new.probabilities), cardinality(new.weights), coalesce(cardinality(new.expected_gains), cardinality(new.tasks))
            ])
            THEN 'each_task_has_a_probability_and_a_weight'
        WHEN
            cardinality(new.adapter_ids) <> ANY (ARRAY[
                cardinality(new.composed_tasks), cardinality(new.adapter_sha256), cardinality(new.adapter_weights)
            ])
            THEN 'each_adapter_has_a_task_a_sha256_and_a_weight'
        WHEN
            new.example_tasks <> new.example_tasks::varchar(300)[]::text[] OR new.tasks <> new.tasks::varchar(300)[]::text[]
            OR new.composed_tasks <> new.composed_tasks::varchar(300)[]::text[] OR new.adapter_sha256 <> new.adapter_sha256::varchar(300)[]::text[]
            THEN 'names_in_a_trace_must_be_at_most_300_characters'
        WHEN cardinality(new.choice_biases) <> coalesce(cardinality(new.choice_scores), -1) THEN 'each_choice_bias_belongs_to_a_score'
        WHEN cardinality(new.label_scores) <> coalesce(cardinality(new.choice_scores), -1) THEN 'each_label_score_belongs_to_a_score'
        WHEN cardinality(new.description_similarities) <> coalesce(cardinality(new.choice_scores), -1)
            THEN 'each_description_similarity_belongs_to_a_score'
        WHEN cardinality(new.score_weights) <> 3 THEN 'score_weights_must_be_three'

        -- Postgres orders NaN above all numbers.
        WHEN -2 > ANY (new.similarities) OR 2 < ANY (new.similarities) THEN 'similarities_must_be_between_minus_2_and_2'
        WHEN 0 > ANY (new.probabilities) OR 1.001 < ANY (new.probabilities) THEN 'probabilities_must_be_between_0_and_1'
        WHEN 0 > ANY (new.weights) OR 1.001 < ANY (new.weights) THEN 'weights_must_be_between_0_and_1'
        WHEN 0 > ANY (new.adapter_weights) OR 1.001 < ANY (new.adapter_weights) THEN 'adapter_weights_must_be_between_0_and_1'
        WHEN -1e9 > ANY (new.expected_gains) OR 1e9 < ANY (new.expected_gains) THEN 'expected_gains_must_be_finite'
        WHEN -1e9 > ANY (new.choice_scores) OR 1e9 < ANY (new.choice_scores) THEN 'choice_scores_must_be_finite'
        WHEN -1e9 > ANY (new.choice_biases) OR 1e9 < ANY (new.choice_biases) THEN 'choice_biases_must_be_finite'
        WHEN -1e9 > ANY (new.label_scores) OR 1e9 < ANY (new.label_scores) THEN 'label_scores_must_be_finite'
        WHEN -1e9 > ANY (new.score_weights) OR 1e9 < ANY (new.score_weights) THEN 'score_weights_must_be_finite'
        WHEN -2 > ANY (new.description_similarities) OR 2 < ANY (new.description_similarities)
            THEN 'description_similarities_must_be_between_minus_2_and_2'

        WHEN jsonb_typeof(new.timings) <> 'object' THEN 'timings_must_be_numbers_by_step'
        WHEN new.timings - '{claim,ready,encode,route,load,compose,calibrate,predict,record,share}'::text[] <> '{}'
            THEN 'timings_must_be_of_known_steps'
        -- A number so near to 0 that double precision can't hold it would raise an error when it is cast.
        WHEN
            jsonb_path_exists(new.timings, 'strict $.* ? (
                @.type() <> "number" || @ < -1000000000000 || @ > 1000000000000 || (@ <> 0 && @ > -0.000000001 && @ < 0.000000001)
            )')
            THEN 'timings_must_be_numbers_by_step'
        WHEN char_length(new.timings::text) > 10000 THEN 'timings_must_be_at_most_10000_characters'
        WHEN jsonb_typeof(new.policy_settings) <> 'object' THEN 'policy_settings_must_be_an_object'
        WHEN char_length(new.policy_settings::text) > 10000 THEN 'policy_settings_must_be_at_most_10000_characters'
        WHEN jsonb_path_exists(new.policy_settings, 'strict $.**{33}') THEN 'policy_settings_must_be_nested_at_most_32_deep'
        WHEN
            jsonb_path_exists(new.policy_settings, '$ ? (
                @.k.type() <> "number" || @.k < -1000000 || @.k > 1000000
                || @.routing_temperature.type() <> "number" || @.routing_temperature < -1000000 || @.routing_temperature > 1000000
                || @.routing_top_p.type() <> "number" || @.routing_top_p < -1000000 || @.routing_top_p > 1000000
                || @.max_adapters.type() <> "number" || @.max_adapters < -1000000 || @.max_adapters > 1000000
                || @.density.type() <> "number" || @.density < -1000000 || @.density > 1000000
            )')
            THEN 'policy_settings_must_hold_numbers_where_policies_do'

        WHEN char_length(new.output) > 10000000 THEN 'output_must_be_at_most_10000000_characters'
        WHEN octet_length(new.base_model) > 300 THEN 'base_model_must_be_at_most_300_bytes'
        WHEN char_length(new.fallback) > 1000 THEN 'fallback_must_be_at_most_1000_characters'
        WHEN char_length(new.composition_digest) > 1000 THEN 'composition_digest_must_be_at_most_1000_characters'
        WHEN char_length(new.worker) > 1000 THEN 'worker_must_be_at_most_1000_characters'
        WHEN char_length(new.device) > 1000 THEN 'device_must_be_at_most_1000_characters'
        WHEN char_length(new.base_fingerprint) > 1000 THEN 'base_fingerprint_must_be_at_most_1000_characters'
        WHEN char_length(new.encoder) > 1000 THEN 'encoder_must_be_at_most_1000_characters'
        WHEN char_length(new.code_version) > 1000 THEN 'code_version_must_be_at_most_1000_characters'
        WHEN new.choice_index NOT BETWEEN 1 AND 1000 THEN 'choice_index_must_be_between_1_and_1000'
        WHEN new.finish_reason NOT IN ('end_of_text', 'stop', 'length', 'no_tokens') THEN 'finish_reason_must_be_a_known_one'
        WHEN new.batch_size NOT BETWEEN 1 AND 1000000 THEN 'batch_size_must_be_positive'
        WHEN new.prompt_tokens < 0 OR new.output_tokens < 0 THEN 'tokens_must_not_be_negative'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'new row for relation "prediction" violates check constraint "%"', broken
            USING ERRCODE = 'check_violation', SCHEMA = 'loracomp', TABLE = 'prediction', CONSTRAINT = broken;
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.refuse_faulty_prediction IS
'Trigger: refuses an answer that breaks a rule; the error''s constraint is the name of the rule, which is a sentence.';

CREATE TRIGGER refuse_faulty BEFORE INSERT OR UPDATE ON loracomp.prediction
FOR EACH ROW EXECUTE FUNCTION loracomp.refuse_faulty_prediction();
