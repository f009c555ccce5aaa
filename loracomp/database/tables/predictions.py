"""Answers, each with its trace."""

from sqlalchemy import ARRAY, REAL, BigInteger, Boolean, Column, Double, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from loracomp.database.tables.columns import (
    NAME_BYTES,
    NO_STATISTICS,
    NOT_COMPRESSED,
    also,
    at_most_characters,
    check,
    columns_of,
    composite_type,
    created_at,
    listing,
    metadata,
    one_of,
    optional,
    partition,
    required,
    set_storage,
    shallow,
    short_name,
    texts,
)

prediction = Table(
    "prediction",
    metadata,
    # No foreign keys: a trace must stay when an adapter, example or task that it names is deleted. If a job is deleted,
    # a trigger deletes its answer. A foreign key would look for the answer even if a whole partition is dropped.
    required("job_id", BigInteger, "Job that the prediction answers.", primary_key=True, autoincrement=False),
    optional("output", Text, "The answer; null for a job of kind route."),
    optional(
        "choice_index", Integer, "Index of the chosen answer in the job's choices, from 1; null for generated text."
    ),
    optional(
        "choice_scores",
        ARRAY(Double),
        "Score of each choice: its log-likelihood in nats, normalised by the policy's choice_normalization, "
        "times the first of score_weights, plus choice_biases and label_scores, plus description_similarities times "
        "the third of score_weights.",
    ),
    required("example_ids", ARRAY(BigInteger), "Ids of the retrieved examples, nearest first.", default="'{}'"),
    required("example_tasks", texts(), "Task of each example in example_ids.", default="'{}'"),
    required(
        "similarities", ARRAY(Double), "Cosine similarity of each example in example_ids to the job.", default="'{}'"
    ),
    required("tasks", texts(), "Tasks of the retrieved examples, most probable first.", default="'{}'"),
    required("probabilities", ARRAY(Double), "Probability of each task in `tasks`.", default="'{}'"),
    required(
        "weights",
        ARRAY(Double),
        "Weight with which the adapter of each task in `tasks` was composed; 0 if it was not composed.",
        default="'{}'",
    ),
    required("composed_tasks", texts(), "Tasks whose adapters were composed into the answer.", default="'{}'"),
    required("adapter_ids", ARRAY(Integer), "Adapter of each task in composed_tasks.", default="'{}'"),
    required("adapter_sha256", texts(), "Sha256 of each adapter's safetensors file.", default="'{}'"),
    required("adapter_weights", ARRAY(Double), "Weight of each adapter in adapter_ids.", default="'{}'"),
    required("policy_settings", JSONB, "Name and settings of the policy at the time of the answer."),
    optional("fallback", Text, "Why the base model answered alone; null if adapters were composed."),
    optional(
        "composition_digest",
        Text,
        "Sha256 over the model that answered: base model, adapters, scalings, weights, strategy, density.",
    ),
    required("prompt_tokens", Integer, "Number of tokens in the prompt.", default="0"),
    required("output_tokens", Integer, "Number of tokens scored or generated.", default="0"),
    required(
        "timings",
        JSONB,
        "Milliseconds of each step. For the job's whole batch: claim, encode, route, load (adapters to the "
        "device), compose, calibrate (if a job of the batch is calibrated) and record. For the job itself: ready "
        "(waiting for the model) and predict (from the model's first step to the answer). share: the job's share "
        "of the time from encode to predict, in which the worker computed for several jobs.",
        default="'{}'",
    ),
    required(
        "batch_size", Integer, "Number of jobs in the model when this one joined them, itself included.", default="1"
    ),
    optional("worker", Text, "Worker that gave the answer."),
    optional("device", Text, "Device and number type of the base model, such as cpu/bfloat16."),
    required("attempt", Integer, "Number of the attempt that succeeded.", default="1"),
    required("base_model", Text, "Base model that answered."),
    required("base_fingerprint", Text, "Fingerprint of the base model's weights."),
    required("encoder", Text, "Name of the encoder and its input version, such as all-MiniLM-L6-v2/1."),
    required("code_version", Text, "Version of loracomp that the worker ran."),
    created_at(),
    # Type text, because a value of type name takes 64 bytes in every row.
    required("submitted_by", Text, "Role that submitted the job; it may see this row."),
    optional("searched_task_count", Integer, "Number of tasks whose examples were searched."),
    optional(
        "expected_gains",
        ARRAY(Double),
        "Expected gain of the adapter of each task in `tasks`, in nats; null if it was not measured.",
    ),
    optional("chat_template", Boolean, "Whether the prompt was put into the base model's chat template."),
    optional(
        "finish_reason",
        Text,
        "What ended the generated text: end_of_text, stop, length (max_new_tokens), or no_tokens if the model "
        "ended it before the first token.",
    ),
    optional(
        "calibration_examples",
        ARRAY(BigInteger),
        "Ids of the labelled examples that were chosen to calibrate the choices' scores; null if there are none. "
        "They were used if label_scores is not null.",
    ),
    optional(
        "choice_biases",
        ARRAY(Double),
        "Bias that was added to each choice's score: fitted to the labels of calibration_examples, or, if label_scores "
        "is null, from the scores of other rows of the table that the worker had answered; null if there was none.",
    ),
    optional(
        "label_scores",
        ARRAY(Double),
        "Added to each choice's score: the score of a classifier trained on the embeddings and hidden states of "
        "calibration_examples, times its weight; null if there was none.",
        info=NOT_COMPRESSED,
    ),
    optional(
        "score_weights",
        ARRAY(Double),
        "Weights of the adapter mix's log-likelihoods, of the classifier's scores and of description_similarities, 0 "
        "for what was not used. They are fitted to the labels of calibration_examples if label_scores is not null. "
        "Null if the scores are the adapter mix's alone.",
        info=NOT_COMPRESSED,
    ),
    optional(
        "description_similarities",
        ARRAY(REAL),
        "Cosine similarity of the prompt to each choice with its description; null if the choices are not described.",
        info=NOT_COMPRESSED,
    ),
    # Reports cast and add up these values, and have names in their keys. The constraints prevent a faulty worker from
    # breaking them. A number so near to 0 that double precision can't hold it would raise when it is cast.
    check(
        "timings_must_be_numbers_by_step",
        "jsonb_typeof(timings) = 'object' AND NOT jsonb_path_exists(timings, "
        """'strict $.* ? (@.type() <> "number" || @ < -1000000000000 || @ > 1000000000000 """
        """|| (@ <> 0 && @ > -0.000000001 && @ < 0.000000001))')""",
    ),
    check("timings_must_not_contain_queue_or_total", "NOT timings ?| '{queue,total}'"),
    check(
        "timings_must_have_at_most_50_steps_named_by_small_letters",
        "jsonb_array_length(jsonb_path_query_array(timings, '$.keyvalue()')) <= 50 AND NOT jsonb_path_exists(timings, "
        """'$.keyvalue() ? (!(@.key like_regex "^[a-z_]{1,50}$"))')""",
    ),
    check("timings_must_be_at_most_10000_characters", "char_length(timings::text) <= 10000"),
    shallow("timings"),
    shallow("policy_settings"),
    check("policy_settings_must_be_at_most_10000_characters", "char_length(policy_settings::text) <= 10000"),
    at_most_characters("output", 10000000),
    short_name("base_model", "base_model"),
    *(
        at_most_characters(column, 1000)
        for column in (
            "fallback",
            "composition_digest",
            "worker",
            "device",
            "base_fingerprint",
            "encoder",
            "code_version",
        )
    ),
    check("choice_index_must_be_between_1_and_1000", "choice_index BETWEEN 1 AND 1000"),
    *(
        listing(column, 1000)
        for column in (
            "example_ids",
            "example_tasks",
            "similarities",
            "tasks",
            "probabilities",
            "weights",
            "composed_tasks",
            "adapter_ids",
            "adapter_sha256",
            "adapter_weights",
            "choice_scores",
            "choice_biases",
            "label_scores",
            "score_weights",
            "description_similarities",
            "calibration_examples",
        )
    ),
    listing("expected_gains", 1000, with_nulls=True),
    check(
        "each_example_has_a_task_and_a_similarity",
        "cardinality(example_ids) = ALL (ARRAY[cardinality(example_tasks), cardinality(similarities)])",
    ),
    check(
        "each_task_has_a_probability_and_a_weight",
        "cardinality(tasks) = ALL (ARRAY[cardinality(probabilities), cardinality(weights), "
        "coalesce(cardinality(expected_gains), cardinality(tasks))])",
    ),
    check(
        "each_adapter_has_a_task_a_sha256_and_a_weight",
        "cardinality(adapter_ids) = ALL (ARRAY[cardinality(composed_tasks), cardinality(adapter_sha256), "
        "cardinality(adapter_weights)])",
    ),
    check(
        f"names_in_a_trace_must_be_at_most_{NAME_BYTES}_bytes",
        f"loracomp.longest_text(example_tasks || tasks || composed_tasks || adapter_sha256) <= {NAME_BYTES}",
    ),
    check(
        "policy_settings_must_hold_numbers_where_policies_do",
        "jsonb_typeof(policy_settings) = 'object' AND NOT jsonb_path_exists(policy_settings, "
        """'$ ? (@.k.type() <> "number" || @.k < -1000000 || @.k > 1000000 """
        """|| @.routing_temperature.type() <> "number" """
        """|| @.routing_temperature < -1000000 || @.routing_temperature > 1000000 """
        """|| @.routing_top_p.type() <> "number" || @.routing_top_p < -1000000 || @.routing_top_p > 1000000 """
        """|| @.max_adapters.type() <> "number" || @.max_adapters < -1000000 || @.max_adapters > 1000000 """
        """|| @.density.type() <> "number" || @.density < -1000000 || @.density > 1000000)')""",
    ),
    check("similarities_must_be_between_minus_2_and_2", "-2 <= ALL (similarities) AND 2 >= ALL (similarities)"),
    check("probabilities_must_be_between_0_and_1", "0 <= ALL (probabilities) AND 1.001 >= ALL (probabilities)"),
    check("weights_must_be_between_0_and_1", "0 <= ALL (weights) AND 1.001 >= ALL (weights)"),
    check("adapter_weights_must_be_between_0_and_1", "0 <= ALL (adapter_weights) AND 1.001 >= ALL (adapter_weights)"),
    check(
        "expected_gains_must_be_finite",
        "-1e9 <= ALL (array_remove(expected_gains, NULL)) AND 1e9 >= ALL (array_remove(expected_gains, NULL))",
    ),
    *(
        check(f"{column}_must_be_finite", f"-1e9 <= ALL ({column}) AND 1e9 >= ALL ({column})")
        for column in ("choice_scores", "choice_biases", "label_scores", "score_weights")
    ),
    check(
        "each_choice_bias_belongs_to_a_score",
        "choice_biases IS NULL OR coalesce(cardinality(choice_biases) = cardinality(choice_scores), false)",
    ),
    check(
        "each_label_score_belongs_to_a_score",
        "label_scores IS NULL OR coalesce(cardinality(label_scores) = cardinality(choice_scores), false)",
    ),
    check(
        "each_description_similarity_belongs_to_a_score",
        "description_similarities IS NULL "
        "OR coalesce(cardinality(description_similarities) = cardinality(choice_scores), false)",
    ),
    check(
        "description_similarities_must_be_between_minus_2_and_2",
        "-2 <= ALL (description_similarities) AND 2 >= ALL (description_similarities)",
    ),
    check("score_weights_must_be_three", "cardinality(score_weights) = 3"),
    one_of("finish_reason", "end_of_text stop length no_tokens", "finish_reason_must_be_a_known_one"),
    check("batch_size_must_be_positive", "batch_size BETWEEN 1 AND 1000000"),
    check("tokens_must_not_be_negative", "prompt_tokens >= 0 AND output_tokens >= 0"),
    # A BRIN index by day: it takes only a few kilobytes, because rows are stored in the order of time.
    Index("prediction_day", text("((created_at AT TIME ZONE 'UTC')::date)"), postgresql_using="brin"),
    comment="Answers, each with its trace (how it was routed and composed) in arrays, which views unnest. Partitioned "
    "by ranges of job ids.",
    # By id and not by time: rows are found by the job's id, ids grow with time, and the key stays unique. Partitions
    # are made by the SQL function add_range.
    postgresql_partition_by="RANGE (job_id)",
)
set_storage(
    prediction,
    NOT_COMPRESSED,
    "choice_scores similarities probabilities weights adapter_sha256 adapter_weights "
    "composition_digest base_fingerprint expected_gains choice_biases",
)
set_storage(prediction, NO_STATISTICS, "output")

composite_type(
    "route_trace",
    columns_of(
        prediction,
        "example_ids example_tasks similarities tasks probabilities weights composed_tasks adapter_ids adapter_sha256 "
        "adapter_weights policy_settings fallback searched_task_count expected_gains chat_template "
        "calibration_examples",
    ),
    "What routing decided for a job, as columns of loracomp.prediction. Only workers use this type.",
)
composite_type(
    "predicted",
    [
        prediction.c.job_id,
        Column("lease_token", BigInteger),
        *columns_of(
            prediction,
            "output choice_index choice_scores choice_biases label_scores score_weights description_similarities "
            "prompt_tokens output_tokens finish_reason composition_digest batch_size timings",
        ),
    ],
    "The prediction of a worker for a job, with the token of its lease; an argument of record_predictions.",
)

# Statistics of the routers. Without them, the planner expects only half a per cent of the predictions in reports.
also("CREATE STATISTICS loracomp.prediction_router ON (policy_settings ->> 'router') FROM loracomp.prediction")

for _name, _values, _comment in (
    ("prediction_0", "FOR VALUES FROM (0) TO (1000000)", "Answers to the jobs from 0 to 999999."),
    ("prediction_others", "DEFAULT", "Answers to jobs that have no other partition; usually none."),
):
    # Two rows fit on a page of 8 kB.
    _like = "(LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080)"
    partition(_name, _like, "loracomp.prediction", _values, _comment)
    also(f"ALTER TABLE loracomp_parts.{_name} ALTER COLUMN output SET STATISTICS 0")
