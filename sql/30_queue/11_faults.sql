-- What a job may contain. It is checked once, by a trigger. Postgres would check constraints of the table at each change of a job's status, and
-- would parse all of them again for each statement: that took a quarter of the server's time for jobs that were claimed one at a time.
--   trigger refuse_faulty       on loracomp.job; the last of the triggers before an INSERT, because these are called in the order of their names

-- It runs with the rights of the inserting role. A condition on a column that is null is null, so its rule is kept. num_nulls is used, because
-- array_position would raise an error for nested arrays that names no column. Postgres orders NaN above all numbers, so `> ANY` finds it.
CREATE FUNCTION loracomp.refuse_faulty_job() RETURNS trigger
LANGUAGE plpgsql
SET search_path = loracomp, pg_temp
AS $$
DECLARE
    broken CONSTANT text := CASE
        WHEN new.kind NOT IN ('predict', 'route', 'measure') THEN 'kind_must_be_predict_route_or_measure'
        WHEN loracomp.is_blank(new.prompt) THEN 'prompt_must_not_be_blank'
        WHEN char_length(new.prompt) > 1000000 THEN 'prompt_must_be_at_most_1000000_characters'
        WHEN NOT isfinite(new.run_at) THEN 'run_at_must_be_finite'
        WHEN new.run_at >= '9999-01-01 00:00:00+00' THEN 'run_at_must_be_before_the_year_9999' -- Python has no later times
        WHEN new.max_attempts NOT BETWEEN 1 AND 100 THEN 'max_attempts_must_be_between_1_and_100'
        WHEN new.timeout_s NOT BETWEEN 1 AND 86400 THEN 'timeout_s_must_be_between_1_and_86400'
        WHEN new.idempotency_key = '' OR char_length(new.idempotency_key) > 500 THEN 'idempotency_key_must_be_1_to_500_characters'
        WHEN jsonb_typeof(new.tags) <> 'object' THEN 'tags_must_be_a_json_object'
        WHEN char_length(new.tags::text) > 100000 THEN 'tags_must_be_at_most_100000_characters'
        WHEN jsonb_path_exists(new.tags, 'strict $.**{33}') THEN 'tags_must_be_nested_at_most_32_deep'

        WHEN
            cardinality(new.choices) NOT BETWEEN 2 AND 1000 OR array_ndims(new.choices) <> 1 OR array_lower(new.choices, 1) <> 1
            THEN 'choices_must_be_a_list_of_2_to_1000'
        WHEN NOT loracomp.texts_are_not_blank(new.choices) THEN 'choices_must_not_be_null_or_blank'
        WHEN NOT loracomp.texts_are_distinct(new.choices) THEN 'choices_must_be_distinct'
        WHEN loracomp.texts_length(new.choices) > 1000000 THEN 'choices_must_be_at_most_1000000_characters_together'
        WHEN
            new.descriptions IS NOT NULL AND (
                new.choices IS NULL OR array_ndims(new.descriptions) IS DISTINCT FROM 1 OR array_lower(new.descriptions, 1) <> 1
                OR cardinality(new.descriptions) <> cardinality(new.choices)
            )
            THEN 'descriptions_must_be_a_list_of_one_for_each_of_the_choices'
        WHEN NOT loracomp.texts_are_not_blank(new.descriptions) THEN 'descriptions_must_not_be_null_or_blank'
        WHEN loracomp.texts_length(new.choices) + loracomp.texts_length(new.descriptions) > 20000
            THEN 'described_choices_must_be_at_most_20000_characters_together'
        WHEN new.text_at IS NOT NULL AND new.choices IS NULL THEN 'text_at_needs_choices'
        WHEN isempty(new.text_at) OR NOT new.text_at <@ int4range(1, char_length(new.prompt) + 1) THEN 'text_at_must_lie_within_the_prompt'
        WHEN new.choices IS NOT NULL AND new.max_new_tokens IS NOT NULL THEN 'give_choices_or_max_new_tokens_not_both'
        WHEN new.choices IS NOT NULL AND (new.temperature <> 0 OR new.top_p <> 1 OR new.seed IS NOT NULL)
            THEN 'choices_are_scored_not_drawn_leave_out_temperature_top_p_seed'
        WHEN new.choices IS NOT NULL AND new.stop <> '{}' THEN 'choices_are_scored_not_generated_leave_out_stop'

        WHEN new.max_new_tokens NOT BETWEEN 1 AND 100000 THEN 'max_new_tokens_must_be_between_1_and_100000'
        WHEN
            array_ndims(new.stop) <> 1 OR num_nulls(VARIADIC new.stop) > 0 OR '' = ANY (new.stop) OR cardinality(new.stop) > 16
            THEN 'stop_must_hold_at_most_16_texts_none_empty'
        WHEN loracomp.texts_length(new.stop) > 10000 THEN 'stop_must_be_at_most_10000_characters_together'
        WHEN new.temperature NOT BETWEEN 0 AND 100 THEN 'temperature_must_be_between_0_and_100'
        WHEN new.top_p NOT BETWEEN 0.0001 AND 1 THEN 'top_p_must_be_between_0.0001_and_1'
        WHEN new.seed < 0 THEN 'seed_must_not_be_negative'

        WHEN loracomp.is_blank(new.system_text) THEN 'system_text_must_not_be_blank'
        WHEN char_length(new.system_text) > 100000 THEN 'system_text_must_be_at_most_100000_characters'
        WHEN new.system_text IS NOT NULL AND NOT new.chat_template THEN 'a_system_text_needs_the_chat_template'

        WHEN array_ndims(new.exclude_tasks) <> 1 THEN 'exclude_tasks_must_be_a_list'
        WHEN num_nulls(VARIADIC new.exclude_tasks) > 0 THEN 'exclude_tasks_must_not_hold_null'
        WHEN loracomp.texts_length(new.exclude_tasks) > 100000 THEN 'exclude_tasks_must_be_at_most_100000_characters_together'
        WHEN cardinality(new.tasks) NOT BETWEEN 1 AND 64 OR array_ndims(new.tasks) <> 1 THEN 'tasks_must_be_a_list_of_1_to_64'
        WHEN num_nulls(VARIADIC new.tasks) > 0 OR NOT loracomp.texts_are_distinct(new.tasks)
            THEN 'tasks_must_be_distinct_and_none_null'
        WHEN loracomp.texts_length(new.tasks) > 100000 THEN 'tasks_must_be_at_most_100000_characters_together'
        WHEN
            new.weights IS NOT NULL AND (
                new.tasks IS NULL OR array_ndims(new.weights) IS DISTINCT FROM 1 OR cardinality(new.weights) <> cardinality(new.tasks)
            )
            THEN 'weights_must_be_one_for_each_of_the_tasks'
        WHEN num_nulls(VARIADIC new.weights) > 0 OR 0.000001 > ANY (new.weights) OR 1 < ANY (new.weights)
            THEN 'weights_must_be_between_0.000001_and_1'

        WHEN new.expected <> ALL (new.choices) THEN 'expected_must_be_one_of_the_choices'
        WHEN new.example_id IS NOT NULL AND new.expected IS NULL THEN 'example_id_needs_an_expected_answer'
        WHEN
            CASE new.kind
                WHEN 'measure' THEN num_nulls(new.example_id, new.expected, new.adapter_ids) > 0
                ELSE new.adapter_ids IS NOT NULL
            END
            THEN 'jobs_of_kind_measure_come_from_measure_task'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'new row for relation "job" violates check constraint "%"', broken
            USING ERRCODE = 'check_violation', SCHEMA = 'loracomp', TABLE = 'job', CONSTRAINT = broken;
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION loracomp.refuse_faulty_job IS
'Trigger: refuses a new job that breaks a rule; the error''s constraint is the name of the rule, which is a sentence.';

CREATE TRIGGER refuse_faulty BEFORE INSERT ON loracomp.job FOR EACH ROW EXECUTE FUNCTION loracomp.refuse_faulty_job();
