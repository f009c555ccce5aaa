"""Measured gains of adapters on examples."""

from sqlalchemy import ARRAY, REAL, BigInteger, Boolean, Column, Double, Integer, PrimaryKeyConstraint, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from loracomp.database.tables.columns import (
    TIME,
    at_most_characters,
    check,
    columns_of,
    composite_type,
    index,
    listing,
    metadata,
    one_of,
    optional,
    references,
    required,
    shallow,
    texts,
)

measurement = Table(
    "measurement",
    metadata,
    required("example_id", BigInteger, "The example.", autoincrement=False),
    required("base_model_id", Integer, "Base model that the adapters were trained for.", autoincrement=False),
    required(
        "task_id",
        Integer,
        "Task of the example, copied from example because routing looks for tasks with measured examples.",
    ),
    required(
        "choice_normalization",
        Text,
        "How the choices' log-likelihoods were normalised before the softmax: none, or divided by characters or "
        "tokens.",
    ),
    required(
        "base_score",
        Double,
        "Log-probability of the right answer under the base model alone, in nats: among the choices, or per "
        "token if the answer is free text.",
    ),
    optional("base_is_right", Boolean, "Whether the base model alone chooses the right answer; null without choices."),
    required("adapter_ids", ARRAY(Integer), "Adapters that were measured."),
    required(
        "gains",
        ARRAY(REAL),
        "Gain of each adapter in adapter_ids: log-probability of the right answer, minus base_score.",
    ),
    required(
        "are_right",
        ARRAY(Boolean),
        "Whether each adapter in adapter_ids chooses the right answer; null without choices.",
    ),
    optional(
        "choice_scores",
        JSONB,
        "Normalised log-likelihoods of the example's choices, an array for each adapter's id; null without choices, or "
        "if a library brought the measurement.",
    ),
    optional("worker", Text, "Worker that made the newest measurement."),
    required("measured_at", TIME, "Time of the newest measurement.", default="now()"),
    required(
        "chat_template", Boolean, "Whether the prompt was put into the base model's chat template.", default="false"
    ),
    PrimaryKeyConstraint("example_id", "base_model_id", name="an_example_has_one_measurement_a_base_model"),
    references(
        "measurement_belongs_to_an_example_of_its_task",
        "example_id task_id",
        "loracomp.example.id loracomp.example.task_id",
        ondelete="CASCADE",
    ),
    references("measured_base_model_must_exist", "base_model_id", "loracomp.base_model.id", ondelete="CASCADE"),
    one_of(
        "choice_normalization", "none characters tokens", "measured_normalization_must_be_none_characters_or_tokens"
    ),
    check("base_score_must_be_a_log_probability", "base_score BETWEEN -1e9 AND 0.001"),
    check("gains_must_be_finite", "-1e9 <= ALL (gains) AND 1e9 >= ALL (gains) AND num_nulls(VARIADIC gains) = 0"),
    at_most_characters("worker", 300),
    # Other workers read these columns to fit evidence.
    check(
        "choice_scores_must_be_lists_of_numbers_by_adapter",
        "jsonb_typeof(choice_scores) = 'object' AND NOT jsonb_path_exists(choice_scores, "
        """'strict $.* ? (@.type() <> "array" """
        """|| exists (@[*] ? (@.type() <> "number" || @ < -1000000000 || @ > 1000000000)))')""",
    ),
    shallow("choice_scores"),
    check(
        "each_measured_adapter_has_a_gain",
        "cardinality(gains) = cardinality(adapter_ids) AND cardinality(are_right) = cardinality(adapter_ids)",
    ),
    index("measurement_task", "task_id base_model_id example_id"),
    comment="How much adapters improve the answers to examples: one row for each example and base model.",
)

composite_type(
    "measured",
    [
        Column("job_id", BigInteger),
        Column("lease_token", BigInteger),
        *columns_of(
            measurement,
            "choice_normalization base_score base_is_right chat_template adapter_ids gains are_right choice_scores",
        ),
    ],
    "The measurement of a worker for a job, with the token of its lease; an argument of record_measurements. "
    "The arrays have an element for each adapter.",
)

task_evidence = Table(
    "task_evidence",
    metadata,
    required("task_id", Integer, "A task without an adapter.", autoincrement=False),
    required("base_model_id", Integer, "Base model that the adapters were trained for.", autoincrement=False),
    required(
        "choices",
        texts(),
        "The choices, sorted, that most of the task's measured examples have; only these examples count.",
    ),
    required("adapter_ids", ARRAY(Integer), "Adapters that were measured on all of these examples."),
    required(
        "log_likelihoods",
        ARRAY(Double),
        "Log-likelihood of the examples' right answers under each adapter in adapter_ids, in nats, after biases of the "
        "choices are fitted.",
    ),
    required("read_at", TIME, "When the scores that it was fitted on were read."),
    PrimaryKeyConstraint("task_id", "base_model_id", name="a_task_has_evidence_once_a_base_model"),
    references("evidence_task_must_exist", "task_id", "loracomp.task.id", ondelete="CASCADE"),
    references("evidence_base_model_must_exist", "base_model_id", "loracomp.base_model.id", ondelete="CASCADE"),
    listing("choices", 1000),
    check("choices_must_be_at_most_1000000_characters_together", "loracomp.texts_length(choices) <= 1000000"),
    listing("adapter_ids", 100000),
    listing("log_likelihoods", 100000),
    check("each_adapter_has_a_likelihood", "cardinality(log_likelihoods) = cardinality(adapter_ids)"),
    check("log_likelihoods_must_be_finite", "-1e9 <= ALL (log_likelihoods) AND 0.001 >= ALL (log_likelihoods)"),
    comment="How likely adapters make the labelled examples of a task without an adapter. Routing derives "
    "the adapters' weights from this.",
)
