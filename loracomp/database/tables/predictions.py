"""Answers, each with its trace."""

from sqlalchemy import ARRAY, REAL, BigInteger, Boolean, Column, Double, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from loracomp.database.tables.columns import (
    NO_STATISTICS,
    NOT_COMPRESSED,
    also,
    columns_of,
    composite_type,
    created_at,
    metadata,
    optional,
    partition,
    required,
    set_storage,
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
