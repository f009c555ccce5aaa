"""Defines the tables of schema loracomp in SQLAlchemy Core.

Applications may import this module to insert jobs and read predictions.

Tests (`alembic check`, and a comparison of constraints and indexes) prove that the migrations produce these tables.
Constraint names read as sentences, because users see them in error messages.
"""

from typing import Any

from pgvector.sqlalchemy import HALFVEC, Vector
from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine, UserDefinedType

SCHEMA = "loracomp"
DIMENSIONS = 832
"""Length of the default encoder's vectors: 384 for each of two texts and 64 for the shape (`model.encoding`).

`loracomp encoder set` may change the column's length in a database, so comparing tables with a database ignores it.
"""

metadata = MetaData(schema=SCHEMA)

# Sequences used as counters (their last value is the count): incrementing one takes no lock, and survives a rollback.
rescued_jobs = Sequence("rescued_jobs", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)
refused_inserts = Sequence("refused_inserts", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)
# Time in milliseconds since 1970 until which a full queue is not counted again. A sequence keeps it although the INSERT
# that finds the queue full is rolled back.
queue_full_until = Sequence("queue_full_until", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)


class RoleName(UserDefinedType[str]):
    """Postgres's type `name` for identifiers; here it holds names of roles."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in CREATE TABLE."""
        return "name"


def _required(name: str, kind: Any, comment: str, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=False, comment=comment, **options)


def _optional(name: str, kind: Any, comment: str, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=True, comment=comment, **options)


def _created_at() -> Column[Any]:
    return _required("created_at", DateTime(timezone=True), "When the row was made.", server_default=text("now()"))


def _count(name: str, comment: str) -> Column[Any]:
    return _required(name, BigInteger, comment, server_default=text("0"))


def _one_of(column: str, values: str, name: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values.split())
    return CheckConstraint(f"{column} IN ({listed})", name=name)


def _texts() -> TypeEngine[Any]:
    return ARRAY(Text)


base_model = Table(
    "base_model",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; people use the name."),
    _required("name", Text, "Name by which jobs ask for it."),
    _required(
        "source", Text, "Where it was loaded from: hub id, folder, GGUF file, or package:NAME of an installed package."
    ),
    _optional("revision", Text, "Revision on the hub; null if the source has none."),
    _required("fingerprint", Text, "Sha256 of the original weight files."),
    _required("architecture", Text, "Class of the model in transformers, such as LlamaForCausalLM."),
    _required("context_length", Integer, "Most tokens that it can read: prompt and answer together."),
    _required("parameter_count", BigInteger, "Number of parameters of the model."),
    _required(
        "modules", JSONB, "Modules that adapters may change: name to [d_out, d_in]; adapters are checked against it."
    ),
    _required(
        "is_default", Boolean, "Whether jobs that name no base model use this one.", server_default=text("false")
    ),
    _created_at(),
    _required("has_chat_template", Boolean, "Whether its tokenizer has a chat template.", server_default=text("false")),
    UniqueConstraint("name", name="base_model_name_is_taken"),
    CheckConstraint("NOT loracomp.is_blank(name)", name="base_model_name_must_not_be_blank"),
    CheckConstraint("fingerprint ~ '^[0-9a-f]{64}$'", name="fingerprint_must_be_a_sha256"),
    CheckConstraint("context_length BETWEEN 1 AND 100000000", name="context_length_must_be_positive"),
    Index("one_default_base_model", "is_default", unique=True, postgresql_where=text("is_default")),
    comment="Frozen causal language models. Each adapter was trained for one of them.",
)

encoder = Table(
    "encoder",
    metadata,
    _required(
        "id",
        SmallInteger,
        "Always 1: a database has one encoder.",
        primary_key=True,
        autoincrement=False,
        server_default=text("1"),
    ),
    _required("name", Text, "Name of the encoder."),
    _required("source", Text, "Where it was loaded from: hub id, folder, or package:NAME of an installed package."),
    _optional("revision", Text, "Revision on the hub; null if the source has none."),
    _required("fingerprint", Text, "Sha256 of the original weight files."),
    _required("dimensions", Integer, "Length of the vectors that it makes."),
    _required(
        "input_version",
        SmallInteger,
        "Format of the text that it embeds. 1: prompt, newline, choices joined by ' | '. "
        "2: prompt and choices embedded separately, each half of the vector. "
        "3: as 2, with the lengths of prompt and choices and the number of choices.",
        server_default=text("1"),
    ),
    _created_at(),
    CheckConstraint("id = 1", name="a_database_has_one_encoder"),
    CheckConstraint("dimensions BETWEEN 1 AND 2000", name="dimensions_must_be_indexable"),
    comment="The frozen sentence encoder that embeds examples and jobs.",
)

task = Table(
    "task",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; people use the name."),
    _required("name", Text, "Name of the task, such as piqa."),
    _required("family", Text, "Kind of task, such as commonsense or nli; for reports.", server_default=text("'other'")),
    _required("description", Text, "One sentence about what the task asks for.", server_default=text("''")),
    _optional("reader_role", RoleName(), "Role whose members' jobs may use the task; null: everybody's may."),
    _created_at(),
    UniqueConstraint("name", name="task_name_is_taken"),
    CheckConstraint("NOT loracomp.is_blank(name)", name="task_name_must_not_be_blank"),
    comment="Tasks, such as piqa, with training examples and adapters.",
)

example = Table(
    "example",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="Internal number."),
    _required("task_id", Integer, "Task that the example belongs to."),
    _required("split", Text, "train, validation or test. Only train examples are retrieved."),
    _optional("prompt", Text, "Text shown to the model; null if a library ships the example without its text."),
    _optional("choices", _texts(), "Possible answers; null if the answer is free text."),
    _optional("answer", Text, "The right answer; one of the choices if there are any."),
    _optional("source_ref", Text, "Where the row came from, such as piqa/train#1532."),
    _required("content_hash", LargeBinary, "Sha256 of the raw fields as canonical JSON."),
    _required(
        "hash_version", SmallInteger, "Version of the way in which content_hash is computed.", server_default=text("1")
    ),
    _created_at(),
    ForeignKeyConstraint(["task_id"], ["loracomp.task.id"], name="example_task_must_exist", ondelete="CASCADE"),
    UniqueConstraint("task_id", "content_hash", name="a_row_stands_in_one_split_of_its_task_once"),
    UniqueConstraint("id", "task_id", name="example_with_its_task"),
    _one_of("split", "train validation test", "split_must_be_train_validation_or_test"),
    CheckConstraint("octet_length(content_hash) = 32", name="content_hash_must_be_a_sha256"),
    CheckConstraint("prompt IS NOT NULL OR source_ref IS NOT NULL", name="an_example_needs_a_prompt_or_a_source_ref"),
    CheckConstraint(
        "choices IS NULL OR answer IS NULL OR answer = ANY (choices)", name="answer_must_be_one_of_the_choices"
    ),
    comment="Examples of tasks, by split. Text may be missing: a library ships only embeddings and references.",
)

example_embedding = Table(
    "example_embedding",
    metadata,
    _required("example_id", BigInteger, "The example.", autoincrement=False),
    _required("task_id", Integer, "Task of the example; a copy, so that retrieval reads one table only."),
    _required("embedding", Vector(DIMENSIONS), "The example as a unit vector, in the encoder's input format."),
    PrimaryKeyConstraint("example_id", name="an_example_has_one_embedding"),
    ForeignKeyConstraint(
        ["example_id", "task_id"],
        ["loracomp.example.id", "loracomp.example.task_id"],
        name="embedding_belongs_to_an_example_of_its_task",
        ondelete="CASCADE",
    ),
    Index("example_embedding_task", "task_id"),
    Index(
        "example_embedding_hnsw",
        "embedding",
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "vector_cosine_ops"},
        # Vectors of a task form clusters: with pgvector's default of 64, one vector in fifty is never found.
        postgresql_with={"ef_construction": 400},
    ),
    comment="Embeddings of train examples, in a table of their own with short rows, because retrieval scans it.",
)

adapter = Table(
    "adapter",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; traces refer to it."),
    _required("task_id", Integer, "Task that the adapter was trained for."),
    _required("base_model_id", Integer, "Base model that the adapter was trained for."),
    _required("name", Text, "Name of the adapter; by default the task's."),
    _required("version", Integer, "Version: 1, 2, ... among adapters with this name and base model."),
    _required(
        "status",
        Text,
        "staged: checked, not used yet. active: used for jobs. retired: not used any more, kept for replay.",
        server_default=text("'staged'"),
    ),
    _required("rank", Integer, "Rank r of the factors A [r, d_in] and B [d_out, r]."),
    _required("alpha", Double, "alpha, called lora_alpha in PEFT; it decides the scaling."),
    _required("use_rslora", Boolean, "Whether scaling is alpha/sqrt(r) instead of alpha/r."),
    _required("scaling", Double, "Factor that B A is multiplied by: alpha/r, or alpha/sqrt(r)."),
    _required("target_modules", _texts(), "Full names of the base model's modules that it changes."),
    _required("parameter_count", BigInteger, "Number of parameters: elements of all its factors."),
    _required("byte_count", BigInteger, "Size of its safetensors file in bytes."),
    _required("sha256", Text, "Sha256 of its safetensors file; checked on every load."),
    _required("config", JSONB, "Its adapter_config.json, for export."),
    _required(
        "training",
        JSONB,
        "How it was trained: data digest, hyper-parameters, rows, seed; {} if unknown.",
        server_default=text("'{}'"),
    ),
    _required("created_by", RoleName(), "Who registered it.", server_default=text("current_user")),
    _created_at(),
    _optional("activated_at", DateTime(timezone=True), "When the adapter last became active."),
    _optional("retired_at", DateTime(timezone=True), "When the adapter was retired."),
    _required(
        "changes_nothing",
        Boolean,
        "Whether A or B is zero in each of its modules, as before training. Activating it warns.",
        server_default=text("false"),
    ),
    ForeignKeyConstraint(["task_id"], ["loracomp.task.id"], name="adapter_task_must_exist"),
    ForeignKeyConstraint(["base_model_id"], ["loracomp.base_model.id"], name="adapter_base_model_must_exist"),
    UniqueConstraint("base_model_id", "name", "version", name="adapter_version_is_taken"),
    _one_of("status", "staged active retired", "adapter_status_must_be_staged_active_or_retired"),
    CheckConstraint("NOT loracomp.is_blank(name)", name="adapter_name_must_not_be_blank"),
    CheckConstraint("version >= 1", name="adapter_version_must_be_positive"),
    CheckConstraint("rank BETWEEN 1 AND 65536", name="rank_must_be_positive"),
    CheckConstraint("alpha BETWEEN 1e-6 AND 1e6", name="alpha_must_be_positive_and_finite"),
    CheckConstraint("scaling BETWEEN 1e-9 AND 1e6", name="scaling_must_be_positive_and_finite"),
    CheckConstraint("cardinality(target_modules) > 0", name="an_adapter_must_target_a_module"),
    CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="adapter_sha256_must_be_a_sha256"),
    Index(
        "one_active_adapter_a_task_and_base_model",
        "task_id",
        "base_model_id",
        unique=True,
        postgresql_where=text("status = 'active'"),
    ),
    comment="LoRA adapters in versions; each is for one task and one base model. The weights are in adapter_part.",
)

adapter_part = Table(
    "adapter_part",
    metadata,
    _required("adapter_id", Integer, "The adapter.", autoincrement=False),
    _required(
        "part", Integer, "Number of the part, from 0; each part has 8 MB, the last may be shorter.", autoincrement=False
    ),
    _required("bytes", LargeBinary, "The bytes of this part of the safetensors file."),
    PrimaryKeyConstraint("adapter_id", "part", name="adapter_part_stands_once"),
    ForeignKeyConstraint(
        ["adapter_id"], ["loracomp.adapter.id"], name="weights_belong_to_an_adapter", ondelete="CASCADE"
    ),
    CheckConstraint("part >= 0", name="part_must_not_be_negative"),
    CheckConstraint("octet_length(bytes) BETWEEN 1 AND 8388608", name="a_part_holds_at_most_8_mb"),
    comment="The adapters' safetensors files, cut into parts of 8 MB.",
)

measurement = Table(
    "measurement",
    metadata,
    _required("example_id", BigInteger, "The example.", autoincrement=False),
    _required("base_model_id", Integer, "Base model that the adapters were trained for.", autoincrement=False),
    _required(
        "task_id", Integer, "Task of the example; a copy, because routing looks for tasks with measured examples."
    ),
    _required(
        "choice_normalization",
        Text,
        "What the choices' log-likelihoods were divided by before their softmax: none, characters, tokens.",
    ),
    _required(
        "base_score",
        Double,
        "Log-probability of the right answer under the base model alone, in nats: among the choices, or per token of a "
        "free text.",
    ),
    _optional("base_is_right", Boolean, "Whether the base model alone chooses the right answer; null without choices."),
    _required("adapter_ids", ARRAY(Integer), "Adapters that were measured."),
    _required(
        "gains",
        ARRAY(REAL),
        "Gain of each adapter in adapter_ids: log-probability of the right answer, minus base_score.",
    ),
    _required(
        "are_right",
        ARRAY(Boolean),
        "Whether each adapter in adapter_ids chooses the right answer; null without choices.",
    ),
    _optional("worker", Text, "Worker that made the newest measurement."),
    _required("measured_at", DateTime(timezone=True), "Time of the newest measurement.", server_default=text("now()")),
    PrimaryKeyConstraint("example_id", "base_model_id", name="an_example_has_one_measurement_a_base_model"),
    ForeignKeyConstraint(
        ["example_id", "task_id"],
        ["loracomp.example.id", "loracomp.example.task_id"],
        name="measurement_belongs_to_an_example_of_its_task",
        ondelete="CASCADE",
    ),
    ForeignKeyConstraint(
        ["base_model_id"], ["loracomp.base_model.id"], name="measured_base_model_must_exist", ondelete="CASCADE"
    ),
    _one_of(
        "choice_normalization",
        "none characters tokens",
        "measured_normalization_must_be_none_characters_or_tokens",
    ),
    CheckConstraint("base_score BETWEEN -1e9 AND 0.001", name="base_score_must_be_a_log_probability"),
    CheckConstraint("-1e9 <= ALL (gains) AND 1e9 >= ALL (gains)", name="gains_must_be_finite"),
    CheckConstraint(
        "cardinality(gains) = cardinality(adapter_ids) AND cardinality(are_right) = cardinality(adapter_ids)",
        name="each_measured_adapter_has_a_gain",
    ),
    Index("measurement_task", "task_id", "base_model_id"),
    comment="How much adapters improve the answers to examples: one short row for each example and base model.",
)

policy = Table(
    "policy",
    metadata,
    _required("name", Text, "Name of the policy. Jobs that name none use 'default'.", primary_key=True),
    _required("description", Text, "What the policy is for.", server_default=text("''")),
    _required(
        "router",
        Text,
        "How adapters are chosen: retrieval; or, for comparison, own_task, random, random_parameters or base.",
        server_default=text("'retrieval'"),
    ),
    _required("k", Integer, "Number of nearest examples to retrieve.", server_default=text("30")),
    _required("temperature", Double, "Temperature of the softmax over similarities.", server_default=text("0.1")),
    _required(
        "top_p",
        Double,
        "Nucleus sampling: the most probable tasks are kept until their probabilities add up to this.",
        server_default=text("0.95"),
    ),
    _required("max_adapters", Integer, "Most adapters in a composition.", server_default=text("8")),
    _required(
        "min_similarity",
        Double,
        "If the nearest example's similarity is lower, no adapter is used and the base model answers alone.",
        server_default=text("0.0"),
    ),
    _required(
        "weighting",
        Text,
        "Weights of the kept tasks. similarity: their probabilities, normalised to 1. uniform: equal. measured: the "
        "adapters' expected gains; adapters that are not expected to help are left out.",
        server_default=text("'similarity'"),
    ),
    _required(
        "strategy",
        Text,
        "How adapters are merged: cat, linear, ties, magnitude_prune, dare_linear or dare_ties.",
        server_default=text("'cat'"),
    ),
    _required(
        "density",
        Double,
        "Share of the factors' elements that ties, magnitude_prune and dare_* keep.",
        server_default=text("0.5"),
    ),
    _required(
        "seed",
        Integer,
        "Seed of the random masks of dare_*, and of the routers random and random_parameters.",
        server_default=text("0"),
    ),
    _required(
        "choice_normalization",
        Text,
        "What a choice's log-likelihood is divided by: none (nothing), its characters or its tokens.",
        server_default=text("'tokens'"),
    ),
    _created_at(),
    _required("updated_at", DateTime(timezone=True), "When it was last changed.", server_default=text("now()")),
    _required(
        "contrast",
        Double,
        "A choice's score is its log-likelihood with adapters minus contrast times that of the base model.",
        server_default=text("0"),
    ),
    _required(
        "min_share",
        Double,
        "Tasks with a smaller weight are left out, and the others' weights are normalised again; the first task stays.",
        server_default=text("0"),
    ),
    _required(
        "gain_prior",
        Double,
        "Shrinks expected gains towards 0, as if examples with gain 0 and this much weight had been retrieved too.",
        server_default=text("0.1"),
    ),
    _required(
        "gain_margin",
        Double,
        "With weighting measured, an adapter is used only if its expected gain, in nats, is above this.",
        server_default=text("0"),
    ),
    _required(
        "chat_template",
        Text,
        "Which prompts stand in the base model's chat template, where it has one: generation (those without choices), "
        "always, never.",
        server_default=text("'generation'"),
    ),
    CheckConstraint("NOT loracomp.is_blank(name)", name="policy_name_must_not_be_blank"),
    _one_of("router", "retrieval own_task random random_parameters base", "router_must_be_a_known_one"),
    CheckConstraint("k BETWEEN 1 AND 200", name="k_must_be_between_1_and_200"),
    # BETWEEN, because NaN and infinity would pass a comparison such as `> 0`.
    CheckConstraint("temperature BETWEEN 0.0001 AND 100", name="temperature_must_be_between_0_0001_and_100"),
    CheckConstraint("top_p BETWEEN 0.0001 AND 1", name="top_p_must_be_between_0_0001_and_1"),
    CheckConstraint("max_adapters BETWEEN 1 AND 64", name="max_adapters_must_be_between_1_and_64"),
    CheckConstraint("min_similarity BETWEEN -1 AND 1", name="min_similarity_must_be_between_minus_1_and_1"),
    _one_of("weighting", "similarity uniform measured", "weighting_must_be_similarity_uniform_or_measured"),
    _one_of("strategy", "linear cat ties magnitude_prune dare_linear dare_ties", "strategy_must_be_a_known_one"),
    CheckConstraint("density BETWEEN 0.0001 AND 1", name="density_must_be_between_0_0001_and_1"),
    CheckConstraint("seed >= 0", name="seed_must_not_be_negative"),
    _one_of("choice_normalization", "none characters tokens", "choice_normalization_must_be_none_characters_or_tokens"),
    CheckConstraint("contrast BETWEEN 0 AND 1", name="contrast_must_be_between_0_and_1"),
    CheckConstraint("min_share BETWEEN 0 AND 1", name="min_share_must_be_between_0_and_1"),
    CheckConstraint("gain_prior BETWEEN 0 AND 1000", name="gain_prior_must_be_between_0_and_1000"),
    CheckConstraint("gain_margin BETWEEN -1000 AND 1000", name="gain_margin_must_be_between_minus_1000_and_1000"),
    _one_of("chat_template", "generation always never", "chat_template_must_be_generation_always_or_never"),
    comment="Named settings of routing and merging. A job names a policy; its trace keeps the settings that were used.",
)

evaluation = Table(
    "evaluation",
    metadata,
    _required("name", Text, "Name of the evaluation.", primary_key=True),
    _required("description", Text, "What the evaluation measures.", server_default=text("''")),
    _optional("split", Text, "Split whose examples became its jobs; null if its jobs were inserted by hand."),
    _required(
        "kind",
        Text,
        "predict: jobs are answered. route: only the routing weights are computed.",
        server_default=text("'predict'"),
    ),
    _optional("base_model", Text, "Base model that answers its jobs; null if its jobs were inserted by hand."),
    _required(
        "exclude_own",
        Boolean,
        "Whether a job may not use its own task's examples and adapter.",
        server_default=text("false"),
    ),
    _required("seed", Integer, "Seed of the random order in which examples are drawn.", server_default=text("0")),
    _required("created_by", RoleName(), "Role that started the evaluation.", server_default=text("current_user")),
    _created_at(),
    ForeignKeyConstraint(
        ["base_model"], ["loracomp.base_model.name"], name="evaluation_base_model_must_exist", onupdate="CASCADE"
    ),
    CheckConstraint("NOT loracomp.is_blank(name)", name="evaluation_name_must_not_be_blank"),
    _one_of("split", "train validation test", "evaluated_split_must_be_train_validation_or_test"),
    _one_of("kind", "predict route", "evaluation_kind_must_be_predict_or_route"),
    comment="Evaluations: named sets of jobs whose right answers are known.",
)

job = Table(
    "job",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="The job's number."),
    _required(
        "status",
        Text,
        "queued, running, succeeded, failed or cancelled. Only SQL functions change it.",
        server_default=text("'queued'"),
    ),
    _required(
        "kind",
        Text,
        "predict: answer the prompt. route: only compute routing weights. measure: score adapters on an example.",
        server_default=text("'predict'"),
    ),
    _required("prompt", Text, "Text for the model to answer; the only column that an INSERT must name."),
    _optional("choices", _texts(), "Possible answers, one of which is chosen; null: the answer is generated text."),
    _optional("max_new_tokens", Integer, "Most tokens to generate; 64 by default if there are no choices."),
    _required(
        "stop",
        _texts(),
        "Texts at which generation ends; they are not part of the answer.",
        server_default=text("'{}'"),
    ),
    _required(
        "policy", Text, "Name of the policy (settings of routing and merging) to use.", server_default=text("'default'")
    ),
    _optional("base_model", Text, "Base model to use; by default the default base model."),
    _required(
        "priority",
        Integer,
        "Priority from 0 to 1000; each step counts like one more minute of waiting.",
        server_default=text("0"),
    ),
    _required(
        "run_at", DateTime(timezone=True), "Time before which the job must not start.", server_default=text("now()")
    ),
    _optional(
        "idempotency_key",
        Text,
        "Key chosen by the submitter. A second INSERT with it is refused; submit_job returns the first job instead.",
    ),
    _required(
        "tags",
        JSONB,
        "JSON object of the submitter's, to filter jobs by; not shown to the model.",
        server_default=text("'{}'"),
    ),
    _required(
        "exclude_tasks", _texts(), "Tasks whose examples and adapters must not be used.", server_default=text("'{}'")
    ),
    _optional("tasks", _texts(), "Tasks whose adapters may be used; null: all tasks that the submitter may use."),
    _optional(
        "weights",
        ARRAY(Double),
        "Weights of the adapters of `tasks`, in that order, used instead of retrieval; null: retrieval decides.",
    ),
    _required(
        "max_attempts", Integer, "Number of attempts after which the job ends as failed.", server_default=text("3")
    ),
    _required("timeout_s", Integer, "Most seconds that one attempt may take.", server_default=text("600")),
    _optional("task", Text, "Task of the example that the job was made from; only for evaluations and kind measure."),
    _optional("expected", Text, "The right answer; only for evaluations and kind measure."),
    _optional("evaluation", Text, "Evaluation that the job belongs to."),
    # No foreign key, so that answers to the same example stay comparable after the example is deleted.
    _optional(
        "example_id",
        BigInteger,
        "Example that the job was made from; only for evaluations and kind measure.",
    ),
    _required(
        "submitted_by",
        RoleName(),
        "Role that inserted the job; it decides which tasks the job may use.",
        server_default=text("current_user"),
    ),
    _created_at(),
    _required(
        "due",
        DateTime(timezone=True),
        "Jobs are claimed in the order of this time: run_at minus priority x 60 s, plus 1000 minutes for evaluations "
        "and kind measure. A trigger sets it.",
        server_default=text("now()"),
    ),
    _required(
        "attempts",
        Integer,
        "Number of times that the job was claimed, without claims that were given back.",
        server_default=text("0"),
    ),
    _required(
        "expired_leases",
        Integer,
        "Number of leases of the job that expired. If above 0, the job is claimed in a batch of one.",
        server_default=text("0"),
    ),
    _optional("worker", Text, "Worker that holds the job, or held it last."),
    _optional(
        "claimed_together",
        Integer,
        "Number of jobs claimed together with it, itself included. If 1, an expired lease counts as an attempt.",
    ),
    _optional("lease_token", BigInteger, "Fence token of the current lease; a worker's later writes must show it."),
    _optional("claimed_at", DateTime(timezone=True), "When the current attempt began."),
    _optional(
        "lease_expires_at",
        DateTime(timezone=True),
        "Time at which the lease expires unless it is renewed; at most claimed_at + timeout_s.",
    ),
    _optional("finished_at", DateTime(timezone=True), "Time at which the job succeeded, failed or was cancelled."),
    _optional("error_code", Text, "Short name of the last error."),
    _optional("error", Text, "Message of the last error."),
    _required(
        "temperature",
        Double,
        "For generated text. 0: the most likely token each time; above 0: sample from softmax(logits / temperature).",
        server_default=text("0"),
    ),
    _required(
        "top_p",
        Double,
        "For generated text: sample from the fewest tokens whose probabilities add up to this (nucleus sampling).",
        server_default=text("1"),
    ),
    _optional("seed", BigInteger, "Seed of sampled text; null: the job's number is the seed."),
    _required(
        "scheduled",
        Boolean,
        "Whether the job waits for run_at. A trigger sets it; the first claim after run_at clears it.",
        server_default=text("false"),
    ),
    # In this table and not in prediction, so that reports that count it need not read traces, ten times as large.
    _optional("is_correct", Boolean, "Whether the answer equals `expected`; null if `expected` is null."),
    _optional("adapter_ids", ARRAY(Integer), "Adapters to score on the job's example; only for kind measure."),
    _optional(
        "chat_template",
        Boolean,
        "Whether the prompt stands in the base model's chat template; null: as the policy says, or with a system text.",
    ),
    _optional("system_text", Text, "What the chat template puts before the prompt as the system's message."),
    ForeignKeyConstraint(["policy"], ["loracomp.policy.name"], name="policy_must_exist", onupdate="CASCADE"),
    ForeignKeyConstraint(
        ["base_model"], ["loracomp.base_model.name"], name="base_model_must_exist", onupdate="CASCADE"
    ),
    ForeignKeyConstraint(
        ["task"], ["loracomp.task.name"], name="task_must_exist", onupdate="CASCADE", ondelete="SET NULL"
    ),
    ForeignKeyConstraint(
        ["evaluation"], ["loracomp.evaluation.name"], name="evaluation_must_exist", onupdate="CASCADE"
    ),
    # Unique for each submitter alone, so that nobody can find out another submitter's keys.
    UniqueConstraint("submitted_by", "idempotency_key", name="idempotency_key_was_used_before"),
    _one_of("status", "queued running succeeded failed cancelled", "status_must_be_a_known_one"),
    _one_of("kind", "predict route measure", "kind_must_be_predict_route_or_measure"),
    CheckConstraint("NOT loracomp.is_blank(prompt)", name="prompt_must_not_be_blank"),
    CheckConstraint("char_length(prompt) <= 1000000", name="prompt_must_be_at_most_1000000_characters"),
    CheckConstraint(
        "choices IS NULL OR (array_ndims(choices) = 1 AND array_lower(choices, 1) = 1 "
        "AND cardinality(choices) BETWEEN 2 AND 1000)",
        name="choices_must_be_a_list_of_2_to_1000",
    ),
    CheckConstraint(
        "choices IS NULL OR loracomp.texts_are_not_blank(choices)", name="choices_must_not_be_null_or_blank"
    ),
    CheckConstraint("choices IS NULL OR loracomp.texts_are_distinct(choices)", name="choices_must_be_distinct"),
    CheckConstraint(
        "choices IS NULL OR loracomp.texts_length(choices) <= 1000000",
        name="choices_must_be_at_most_1000000_characters_together",
    ),
    # Every change of status checks these constraints; testing for empty values first makes that cheap.
    CheckConstraint(
        "stop = '{}' OR loracomp.texts_length(stop) <= 10000", name="stop_must_be_at_most_10000_characters_together"
    ),
    CheckConstraint(
        "exclude_tasks = '{}' OR loracomp.texts_length(exclude_tasks) <= 100000",
        name="exclude_tasks_must_be_at_most_100000_characters_together",
    ),
    CheckConstraint("tags = '{}' OR char_length(tags::text) <= 100000", name="tags_must_be_at_most_100000_characters"),
    CheckConstraint("choices IS NULL OR max_new_tokens IS NULL", name="give_choices_or_max_new_tokens_not_both"),
    CheckConstraint("max_new_tokens BETWEEN 1 AND 100000", name="max_new_tokens_must_be_between_1_and_100000"),
    CheckConstraint(
        "stop = '{}' OR (array_ndims(stop) = 1 AND num_nulls(VARIADIC stop) = 0 AND '' <> ALL (stop) "
        "AND cardinality(stop) <= 16)",
        name="stop_must_hold_at_most_16_texts_none_empty",
    ),
    CheckConstraint("temperature BETWEEN 0 AND 100", name="temperature_must_be_between_0_and_100"),
    CheckConstraint("top_p BETWEEN 0.0001 AND 1", name="top_p_must_be_between_0_0001_and_1"),
    CheckConstraint("seed >= 0", name="seed_must_not_be_negative"),
    CheckConstraint(
        "choices IS NULL OR (temperature = 0 AND top_p = 1 AND seed IS NULL)",
        name="choices_are_scored_not_drawn_leave_out_temperature_top_p_seed",
    ),
    CheckConstraint("priority BETWEEN 0 AND 1000", name="priority_must_be_between_0_and_1000"),
    CheckConstraint(
        "idempotency_key <> '' AND char_length(idempotency_key) <= 500",
        name="idempotency_key_must_be_1_to_500_characters",
    ),
    CheckConstraint("jsonb_typeof(tags) = 'object'", name="tags_must_be_a_json_object"),
    # num_nulls, because array_position raises for nested arrays, with an error that names no column.
    CheckConstraint("array_ndims(exclude_tasks) = 1", name="exclude_tasks_must_be_a_list"),
    CheckConstraint("num_nulls(VARIADIC exclude_tasks) = 0", name="exclude_tasks_must_not_hold_null"),
    CheckConstraint(
        "tasks IS NULL OR (array_ndims(tasks) = 1 AND cardinality(tasks) BETWEEN 1 AND 64)",
        name="tasks_must_be_a_list_of_1_to_64",
    ),
    CheckConstraint(
        "tasks IS NULL OR (num_nulls(VARIADIC tasks) = 0 AND loracomp.texts_are_distinct(tasks))",
        name="tasks_must_be_distinct_and_none_null",
    ),
    CheckConstraint(
        "tasks IS NULL OR loracomp.texts_length(tasks) <= 100000",
        name="tasks_must_be_at_most_100000_characters_together",
    ),
    CheckConstraint(
        "weights IS NULL OR (tasks IS NOT NULL AND array_ndims(weights) = 1 "
        "AND cardinality(weights) = cardinality(tasks))",
        name="weights_must_be_one_for_each_of_the_tasks",
    ),
    # Postgres orders NaN above all numbers, so `1 >= ALL` excludes it.
    CheckConstraint(
        "weights IS NULL OR (num_nulls(VARIADIC weights) = 0 AND 0 < ALL (weights) AND 1 >= ALL (weights))",
        name="weights_must_be_above_0_and_at_most_1",
    ),
    CheckConstraint("NOT loracomp.is_blank(system_text)", name="system_text_must_not_be_blank"),
    CheckConstraint("char_length(system_text) <= 100000", name="system_text_must_be_at_most_100000_characters"),
    CheckConstraint("system_text IS NULL OR chat_template IS NOT FALSE", name="a_system_text_needs_the_chat_template"),
    CheckConstraint("attempts >= 0", name="attempts_must_not_be_negative"),
    CheckConstraint("expired_leases >= 0", name="expired_leases_must_not_be_negative"),
    CheckConstraint("max_attempts BETWEEN 1 AND 100", name="max_attempts_must_be_between_1_and_100"),
    CheckConstraint("timeout_s BETWEEN 1 AND 86400", name="timeout_s_must_be_between_1_and_86400"),
    CheckConstraint("isfinite(run_at)", name="run_at_must_be_finite"),
    CheckConstraint(
        "expected IS NULL OR choices IS NULL OR expected = ANY (choices)", name="expected_must_be_one_of_the_choices"
    ),
    CheckConstraint(
        "example_id IS NULL OR evaluation IS NOT NULL OR kind = 'measure'",
        name="example_id_is_for_evaluations_and_measuring",
    ),
    CheckConstraint(
        "CASE kind WHEN 'measure' THEN num_nulls(example_id, expected, adapter_ids) = 0 AND evaluation IS NULL "
        "ELSE adapter_ids IS NULL END",
        name="jobs_of_kind_measure_come_from_measure_task",
    ),
    CheckConstraint(
        "(status = 'running') = (num_nulls(lease_token, lease_expires_at, claimed_at) = 0)",
        name="a_running_job_and_only_it_has_a_lease",
    ),
    CheckConstraint(
        "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
        name="an_ended_job_and_only_it_has_finished_at",
    ),
    # Each submitter's due jobs in order: a claim reads the first jobs of each submitter.
    Index(
        "job_queue",
        "base_model",
        "submitted_by",
        "due",
        "id",
        postgresql_where=text("status = 'queued' AND NOT scheduled"),
    ),
    Index("job_scheduled", "run_at", postgresql_where=text("status = 'queued' AND scheduled")),
    Index("job_leases", "lease_expires_at", postgresql_where=text("status = 'running'")),
    Index("job_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    # The index must not contain the task: EXPLAIN ANALYZE counts the rows that an index finds and row security removes,
    # and so would reveal the names of hidden tasks.
    Index("job_evaluation", "evaluation", postgresql_where=text("evaluation IS NOT NULL")),
    # Jobs of evaluations and of kind measure, which are claimed only if no other job is due.
    Index(
        "job_queue_in_the_background",
        "base_model",
        "due",
        "id",
        postgresql_where=text("status = 'queued' AND (evaluation IS NOT NULL OR kind = 'measure') AND NOT scheduled"),
    ),
    Index("job_to_measure", "example_id", postgresql_where=text("kind = 'measure' AND finished_at IS NULL")),
    Index(
        "an_evaluation_asks_an_example_once_a_policy",
        "evaluation",
        "example_id",
        "policy",
        unique=True,
        postgresql_where=text("example_id IS NOT NULL"),
    ),
    comment="Jobs: requests for predictions. INSERT a prompt here; read the answer in loracomp.job_result.",
    # A change of status writes a new version of the row. The fill factor leaves room for it on the same page. Vacuum
    # runs early and at full speed, however large the table, as each claim reads past dead rows at the queue's head.
    postgresql_with={
        "fillfactor": "80",
        "autovacuum_analyze_scale_factor": "0.05",
        "autovacuum_vacuum_scale_factor": "0.005",
        "autovacuum_vacuum_threshold": "1000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)

turn = Table(
    "turn",
    metadata,
    _required("base_model", Text, "Base model that the jobs ask for."),
    _required("submitted_by", RoleName(), "Who submitted them."),
    _required(
        "served_at",
        DateTime(timezone=True),
        "When a claim last took the first job of this submitter.",
        server_default=text("now()"),
    ),
    PrimaryKeyConstraint("base_model", "submitted_by", name="a_submitter_has_one_turn_a_base_model"),
    ForeignKeyConstraint(
        ["base_model"],
        ["loracomp.base_model.name"],
        name="turn_base_model_must_exist",
        onupdate="CASCADE",
        ondelete="CASCADE",
    ),
    comment="When each submitter's jobs were last claimed, so that claims serve submitters in turn.",
    # Few rows that every claim updates: mostly empty pages keep all versions of a row on its page.
    postgresql_with={"fillfactor": "20", "autovacuum_vacuum_cost_delay": "0"},
)

queue_limit = Table(
    "queue_limit",
    metadata,
    _required("id", SmallInteger, "Always 1.", primary_key=True, autoincrement=False, server_default=text("1")),
    _optional("in_all", BigInteger, "Most jobs that may wait, not counting evaluations; null: no limit."),
    _optional("per_submitter", BigInteger, "Most jobs of one submitter that may wait; null: no limit."),
    CheckConstraint("id = 1", name="there_is_one_row_of_queue_limits"),
    CheckConstraint("in_all BETWEEN 1 AND 1000000000", name="in_all_must_be_between_1_and_1000000000"),
    CheckConstraint("per_submitter BETWEEN 1 AND 1000000000", name="per_submitter_must_be_between_1_and_1000000000"),
    comment="How many jobs may wait. set_queue_limits changes it; jobs of administrators are not limited.",
)

reported_tag = Table(
    "reported_tag",
    metadata,
    _required("key", Text, "Key of a tag whose values analysts may see.", primary_key=True),
    CheckConstraint("NOT loracomp.is_blank(key)", name="reported_tag_must_not_be_blank"),
    CheckConstraint("char_length(key) <= 100", name="reported_tag_must_be_at_most_100_characters"),
    comment="Keys of the tags that views of schema bi show. set_reported_tags changes them.",
)

purged_day = Table(
    "purged_day",
    metadata,
    _required("day", Date, "Day in UTC on which the jobs ended."),
    _required("submitted_by", RoleName(), "Database role that submitted the jobs."),
    _required("policy", Text, "Name of the policy (settings of routing and merging)."),
    _required("base_model", Text, "Base model that answered, or that the jobs asked for."),
    _optional("evaluation", Text, "Evaluation that the jobs belong to; null for other jobs."),
    _optional("own_task", Text, "Task of the examples that the jobs were made from; null if unknown."),
    _required("jobs", BigInteger, "Number of jobs that ended on this day and were purged later."),
    _required("succeeded", BigInteger, "Number of these jobs that succeeded."),
    _required("failed", BigInteger, "Number of these jobs that failed."),
    _required("attempts", BigInteger, "Number of attempts of these jobs."),
    _required("prompt_tokens", BigInteger, "Tokens in the prompts of the jobs that succeeded."),
    _required("output_tokens", BigInteger, "Tokens scored or generated for the jobs that succeeded."),
    _required("compute_s", Double, "Seconds of computing: each batch's time, divided by its jobs."),
    _required("asked", BigInteger, "Number of these jobs whose right answer is known."),
    _required("n", BigInteger, "Number of jobs with a known right answer that succeeded."),
    _required("correct", BigInteger, "Number of jobs whose answer was right."),
    UniqueConstraint(
        "day",
        "submitted_by",
        "policy",
        "base_model",
        "evaluation",
        "own_task",
        name="sums_of_purged_jobs_stand_once_a_day",
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint(
        "jobs > 0 AND succeeded >= 0 AND failed >= 0 AND succeeded + failed <= jobs",
        name="purged_jobs_must_add_up",
    ),
    CheckConstraint("correct >= 0 AND correct <= n AND n <= asked", name="purged_answers_must_add_up"),
    comment="Sums by day over purged jobs: how many, cost and accuracy. Reports add them to the jobs that remain.",
)

purged_tag = Table(
    "purged_tag",
    metadata,
    _required("day", Date, "Day in UTC on which the jobs were answered."),
    _required("tag", Text, "Key of a tag that analysts might see when the jobs were purged."),
    _required("value", Text, "Value of the tag as text, cut to 200 characters."),
    _required("label", Text, "The choice that was the answer; empty if the answer was generated text."),
    _required("policy", Text, "Name of the policy (settings of routing and merging)."),
    _required("base_model", Text, "Base model that answered."),
    _required("n", BigInteger, "Number of answers whose jobs were purged."),
    _required("asked", BigInteger, "Number of these answers whose right answer is known."),
    _required("correct", BigInteger, "Number of these answers that were right."),
    PrimaryKeyConstraint("day", "tag", "value", "label", "policy", "base_model", name="purged_tag_pkey"),
    CheckConstraint("n > 0 AND correct >= 0 AND correct <= asked AND asked <= n", name="purged_labels_must_add_up"),
    comment="Number of purged jobs' answers by day, tag and answer. Reports add them to the jobs that remain.",
)

queue_count = Table(
    "queue_count",
    metadata,
    _required(
        "submitted_by", RoleName(), "Submitter whose jobs were counted; empty: all submitters.", primary_key=True
    ),
    _required("queued", BigInteger, "Number of waiting jobs at counted_at."),
    _required("last_id", BigInteger, "Highest job id at counted_at; jobs inserted later have higher ids."),
    _required(
        "counted_at", DateTime(timezone=True), "When the jobs were counted.", server_default=text("clock_timestamp()")
    ),
    comment="Counts of waiting jobs, which are compared with queue_limit, so that an INSERT need not count them.",
    postgresql_with={"fillfactor": "50"},
)

worker = Table(
    "worker",
    metadata,
    _required("name", Text, "Name of the worker, also in leases and predictions.", primary_key=True),
    _required(
        "status",
        Text,
        "Last reported status: idle, busy, stopping or stopped. The view worker_status shows who is gone.",
    ),
    _required("host", Text, "Machine that the worker runs on."),
    _required("pid", Integer, "Process id of the worker on its host."),
    _required("code_version", Text, "Version of loracomp that the worker runs."),
    _required("base_model", Text, "Base model that the worker serves."),
    _required("device", Text, "Device and number type of the base model, such as cpu/bfloat16."),
    _required("login", RoleName(), "Database role that the worker logged in as.", server_default=text("session_user")),
    _required(
        "started_at",
        DateTime(timezone=True),
        "When the worker started, by the database's clock.",
        server_default=text("now()"),
    ),
    _required("seen_at", DateTime(timezone=True), "When the worker last reported.", server_default=text("now()")),
    _optional("looked_at", DateTime(timezone=True), "When the worker last asked for jobs; null if never."),
    _required("silent_after_s", Double, "Seconds without a report after which the worker counts as gone."),
    _count("claimed", "Number of jobs that the worker claimed since it started."),
    _count("succeeded", "Number of jobs that the worker answered."),
    _count("failed", "Number of failures that the worker recorded, including attempts that are retried."),
    _count("released", "Number of jobs that the worker gave back without counting the attempt."),
    _count("dropped", "Number of results that came too late, after the lease was lost, and were not recorded."),
    _one_of("status", "idle busy stopping stopped", "worker_status_must_be_a_known_one"),
    # Views add it to a timestamp; a value that no interval can hold would make them fail for everybody.
    CheckConstraint("silent_after_s BETWEEN 0 AND 86400", name="silent_after_s_must_be_between_0_and_86400"),
    comment="Workers and what they last reported. The view worker_status shows who is alive.",
    # Few rows that are updated every few seconds: half-empty pages keep all versions of a row on its page.
    postgresql_with={"fillfactor": "50"},
)

prediction = Table(
    "prediction",
    metadata,
    # The job is the only foreign key: a trace must stay when an adapter, example or task that it names is deleted.
    _required("job_id", BigInteger, "Job that the prediction answers.", primary_key=True, autoincrement=False),
    _optional("output", Text, "The answer; null for a job of kind route."),
    _optional(
        "choice_index", Integer, "Index of the chosen answer in the job's choices, from 1; null for generated text."
    ),
    _optional(
        "choice_scores",
        ARRAY(Double),
        "Log-likelihood of each choice in nats, divided as choice_normalization of the policy says.",
    ),
    _optional(
        "query_embedding",
        HALFVEC(),
        "The job's unit vector, so that routing can be computed again with other settings.",
    ),
    _required(
        "example_ids", ARRAY(BigInteger), "Ids of the retrieved examples, nearest first.", server_default=text("'{}'")
    ),
    _required("example_tasks", _texts(), "Task of each example in example_ids.", server_default=text("'{}'")),
    _required(
        "similarities",
        ARRAY(Double),
        "Cosine similarity of each example in example_ids to the job.",
        server_default=text("'{}'"),
    ),
    _required("tasks", _texts(), "Tasks of the retrieved examples, most probable first.", server_default=text("'{}'")),
    _required("probabilities", ARRAY(Double), "Probability of each task in `tasks`.", server_default=text("'{}'")),
    _required(
        "weights",
        ARRAY(Double),
        "Weight of each task in `tasks`; 0 if it was not kept by the nucleus (top_p).",
        server_default=text("'{}'"),
    ),
    _required(
        "composed_tasks", _texts(), "Tasks whose adapters were composed into the answer.", server_default=text("'{}'")
    ),
    _required("adapter_ids", ARRAY(Integer), "Adapter of each task in composed_tasks.", server_default=text("'{}'")),
    _required("adapter_sha256", _texts(), "Sha256 of each adapter's safetensors file.", server_default=text("'{}'")),
    _required("adapter_weights", ARRAY(Double), "Weight of each adapter in adapter_ids.", server_default=text("'{}'")),
    _required("policy_settings", JSONB, "Name and settings of the policy at the time of the answer."),
    _optional("fallback", Text, "Why the base model answered alone; null if adapters were composed."),
    _optional(
        "composition_digest",
        Text,
        "Sha256 over what decides the answer: base model, adapters, scalings, weights, strategy, density, seed.",
    ),
    _optional(
        "norm_ratio",
        Double,
        "Norm of the merged weight change divided by that of the exact weighted sum; null for the base model alone.",
    ),
    _optional(
        "cosine",
        Double,
        "Cosine between the merged weight change and the exact weighted sum; null for the base model alone.",
    ),
    _required("prompt_tokens", Integer, "Number of tokens in the prompt.", server_default=text("0")),
    _required("output_tokens", Integer, "Number of tokens scored or generated.", server_default=text("0")),
    _required(
        "timings", JSONB, "Milliseconds that each step took for the job's whole batch.", server_default=text("'{}'")
    ),
    _required("batch_size", Integer, "Number of jobs in the batch.", server_default=text("1")),
    _optional("worker", Text, "Worker that gave the answer."),
    _optional("device", Text, "Device and number type of the base model, such as cpu/bfloat16."),
    _required("attempt", Integer, "Number of the attempt that succeeded.", server_default=text("1")),
    _required("base_model", Text, "Base model that answered."),
    _required("base_fingerprint", Text, "Fingerprint of the base model's weights."),
    _required("encoder", Text, "Name of the encoder and its input version, such as all-MiniLM-L6-v2/1."),
    _required("code_version", Text, "Version of loracomp that the worker ran."),
    _created_at(),
    # Type text, because a value of type name takes 64 bytes in every row.
    _required("submitted_by", Text, "Role that submitted the job; it may see this row."),
    _optional(
        "eligible_task_count",
        Integer,
        "Number of tasks that the job was allowed to use; null in traces older than this column.",
    ),
    _optional(
        "expected_gains",
        ARRAY(Double),
        "Expected gain of the adapter of each task in `tasks`, in nats; null if it was not measured.",
    ),
    _optional("chat_template", Boolean, "Whether the prompt stood in the base model's chat template."),
    _optional(
        "finish_reason",
        Text,
        "What ended generated text: end_of_text, stop, length (max_new_tokens), or no_tokens: it ended before it "
        "began.",
    ),
    # CASCADE, so that deleting a job by hand also deletes its answer.
    ForeignKeyConstraint(["job_id"], ["loracomp.job.id"], name="a_prediction_answers_a_job", ondelete="CASCADE"),
    # Reports cast and add up these values; the constraints prevent a faulty worker from breaking them.
    CheckConstraint(
        "jsonb_typeof(timings) = 'object' AND NOT jsonb_path_exists(timings, "
        """'strict $.* ? (@.type() <> "number" || @ < -1000000000000 || @ > 1000000000000)')""",
        name="timings_must_be_numbers_by_step",
    ),
    CheckConstraint(
        "jsonb_typeof(policy_settings) = 'object' AND NOT jsonb_path_exists(policy_settings, "
        """'$ ? (@.k.type() <> "number" || @.k < -1000000 || @.k > 1000000 """
        """|| @.temperature.type() <> "number" || @.temperature < -1000000 || @.temperature > 1000000 """
        """|| @.top_p.type() <> "number" || @.top_p < -1000000 || @.top_p > 1000000 """
        """|| @.max_adapters.type() <> "number" || @.max_adapters < -1000000 || @.max_adapters > 1000000 """
        """|| @.density.type() <> "number" || @.density < -1000000 || @.density > 1000000)')""",
        name="policy_settings_must_hold_numbers_where_policies_do",
    ),
    CheckConstraint(
        "-2 <= ALL (similarities) AND 2 >= ALL (similarities)", name="similarities_must_be_between_minus_2_and_2"
    ),
    CheckConstraint(
        "-0.001 <= ALL (probabilities) AND 1.001 >= ALL (probabilities)", name="probabilities_must_be_between_0_and_1"
    ),
    CheckConstraint("-0.001 <= ALL (weights) AND 1.001 >= ALL (weights)", name="weights_must_be_between_0_and_1"),
    CheckConstraint(
        "-0.001 <= ALL (adapter_weights) AND 1.001 >= ALL (adapter_weights)",
        name="adapter_weights_must_be_between_0_and_1",
    ),
    CheckConstraint(
        "-1e9 <= ALL (array_remove(expected_gains, NULL)) AND 1e9 >= ALL (array_remove(expected_gains, NULL))",
        name="expected_gains_must_be_finite",
    ),
    _one_of("finish_reason", "end_of_text stop length no_tokens", "finish_reason_must_be_a_known_one"),
    CheckConstraint("batch_size BETWEEN 1 AND 1000000", name="batch_size_must_be_positive"),
    CheckConstraint("prompt_tokens >= 0 AND output_tokens >= 0", name="tokens_must_not_be_negative"),
    # A BRIN index by day: it takes only a few kilobytes, because rows are stored in the order of time.
    Index("prediction_day", text("((created_at AT TIME ZONE 'UTC')::date)"), postgresql_using="brin"),
    comment="Answers, each with its trace (how it was routed and composed) in arrays, which views unnest.",
    # Two rows fit on a page. With the default of 2 kB, compressing parts of each row and storing them elsewhere took a
    # quarter of the CPU time of recording.
    postgresql_with={"toast_tuple_target": "4080"},
)

audit_event = Table(
    "audit_event",
    metadata,
    Column(
        "id",
        BigInteger,
        Identity(always=True),
        primary_key=True,
        comment="Number of the event; later events have higher numbers.",
    ),
    _required("at", DateTime(timezone=True), "When the change was made.", server_default=text("clock_timestamp()")),
    _required("actor", RoleName(), "Role that made the change.", server_default=text("session_user")),
    _required("entity", Text, "Table that changed, such as job or policy."),
    _optional("entity_id", BigInteger, "Id of the row; null if it has none."),
    _optional("entity_name", Text, "Name of the row; null if it has none."),
    _required("action", Text, "What was done: insert, update or delete."),
    _optional("old_status", Text, "Status before the change; only for jobs and adapters."),
    _optional("new_status", Text, "Status after the change; only for jobs and adapters."),
    _optional("attempt", Integer, "Number of the job's attempts after the change."),
    _optional("worker", Text, "Worker that made the change."),
    _optional("reason", Text, "Error code, or the reason that the operator gave."),
    _optional("before", JSONB, "The row before the change, without prompts."),
    _optional("after", JSONB, "The row after the change, without prompts."),
    _optional(
        "login",
        RoleName(),
        "Role that logged in, if the session had switched to another role (actor) by SET ROLE; otherwise null.",
        # Written exactly as Postgres prints it, because Alembic compares this default as text.
        server_default=text(
            "NULLIF(SESSION_USER, COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER))"
        ),
    ),
    _one_of("action", "insert update delete", "action_must_be_insert_update_or_delete"),
    Index("audit_event_of_job", "entity_id", postgresql_where=text("entity = 'job'")),
    Index("audit_event_by_entity", "entity", "at", postgresql_where=text("entity <> 'job'")),
    comment="Audit log: who changed what, and when. Triggers write it; rows are never changed.",
)

report_refresh = Table(
    "report_refresh",
    metadata,
    _required("report", Text, "Name of a materialized view in schema loracomp.", primary_key=True),
    _required(
        "refreshed_at",
        DateTime(timezone=True),
        "When the view was refreshed; it contains the data up to then.",
        server_default=text("now()"),
    ),
    _optional(
        "seconds",
        Double,
        "Seconds that the last refresh took; null if the view was not refreshed since it was created.",
    ),
    comment="When each materialized view that reports read was last refreshed.",
)

sql_object = Table(
    "sql_object",
    metadata,
    _required("path", Text, "File under sql/.", primary_key=True),
    _required(
        "position", Integer, "Position in the order in which files are applied; objects are dropped in reverse order."
    ),
    _required("drops", _texts(), "Statements that drop the objects that the file created."),
    _required("checksum", Text, "Sha256 of the file when it was applied."),
    _required("applied_at", DateTime(timezone=True), "When the file was applied.", server_default=text("now()")),
    comment="Files of sql/ that were applied to this database.",
)
