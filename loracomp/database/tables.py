"""What the tables are (schema loracomp), in SQLAlchemy Core.

Applications may import it to insert jobs and read predictions.

`alembic check`, and a comparison of constraint and index definitions in the tests, prove that the migrations lead here.
Constraint names read as sentences: they are the error that a person sees.
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
"""Length of the default encoder's vectors: two texts of 384 and the shape of 64. `loracomp encoder set` may change it
in the database; the comparison of tables with the database ignores it."""

metadata = MetaData(schema=SCHEMA)

# Counters, which nobody waits for and no rollback undoes: their last value.
rescued_jobs = Sequence("rescued_jobs", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)
refused_inserts = Sequence("refused_inserts", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)
# Until when a full queue is not counted again, in milliseconds since 1970: what refuses is rolled back, but not this.
queue_full_until = Sequence("queue_full_until", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)


class RoleName(UserDefinedType[str]):
    """Postgres's own type for identifiers, here of roles."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Name of the type in DDL."""
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
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Number inside; people use the name."),
    _required("name", Text, "What jobs and people call it."),
    _required("source", Text, "Hub id, folder, GGUF file, or package:NAME that carries one."),
    _optional("revision", Text, "Revision at the hub; null where the source has none."),
    _required("fingerprint", Text, "Sha256 of the weight files as they came."),
    _required("architecture", Text, "Class of the model, as transformers names it."),
    _required("context_length", Integer, "Longest input with its answer, in tokens."),
    _required("parameter_count", BigInteger, "Parameters of the model."),
    _required("modules", JSONB, "Every linear module: its name to [d_out, d_in]; adapters are checked against it."),
    _required(
        "is_default", Boolean, "Whether jobs that name no base model mean this one.", server_default=text("false")
    ),
    _created_at(),
    UniqueConstraint("name", name="base_model_name_is_taken"),
    CheckConstraint("NOT loracomp.is_blank(name)", name="base_model_name_must_not_be_blank"),
    CheckConstraint("fingerprint ~ '^[0-9a-f]{64}$'", name="fingerprint_must_be_a_sha256"),
    CheckConstraint("context_length BETWEEN 1 AND 100000000", name="context_length_must_be_positive"),
    Index("one_default_base_model", "is_default", unique=True, postgresql_where=text("is_default")),
    comment="Frozen causal language models that adapters belong to.",
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
    _required("name", Text, "What people call it."),
    _required("source", Text, "Hub id, folder, or package:NAME that carries one."),
    _optional("revision", Text, "Revision at the hub; null where the source has none."),
    _required("fingerprint", Text, "Sha256 of the weight files as they came."),
    _required("dimensions", Integer, "Length of its vectors."),
    _required(
        "input_version",
        SmallInteger,
        "What it is shown. 1: prompt, then a newline and the choices joined by ' | '. "
        "2: prompt and choices apart, each half of the vector. "
        "3: the same, and how long and how many they are.",
        server_default=text("1"),
    ),
    _created_at(),
    CheckConstraint("id = 1", name="a_database_has_one_encoder"),
    CheckConstraint("dimensions BETWEEN 1 AND 2000", name="dimensions_must_be_indexable"),
    comment="The frozen sentence encoder that examples and jobs are embedded with.",
)

task = Table(
    "task",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Number inside; people use the name."),
    _required("name", Text, "What people call it, such as piqa."),
    _required("family", Text, "Kind of task, such as commonsense or nli; for reports.", server_default=text("'other'")),
    _required("description", Text, "What the task asks for, in a sentence.", server_default=text("''")),
    _optional("reader_role", RoleName(), "Role whose members' jobs may retrieve it; null is everybody."),
    _created_at(),
    UniqueConstraint("name", name="task_name_is_taken"),
    CheckConstraint("NOT loracomp.is_blank(name)", name="task_name_must_not_be_blank"),
    comment="Named skills with training examples.",
)

example = Table(
    "example",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="Number inside."),
    _required("task_id", Integer, "The task it is an example of."),
    _required("split", Text, "train: may be retrieved. validation, test: never."),
    _optional("prompt", Text, "Text shown to the model; null where a library ships the example without its text."),
    _optional("choices", _texts(), "Possible answers; null where the answer is free text."),
    _optional("answer", Text, "The right answer; one of the choices where there are any."),
    _optional("source_ref", Text, "Where the row came from, such as piqa/train#1532."),
    _required("content_hash", LargeBinary, "Sha256 of the raw fields as canonical JSON."),
    _required("hash_version", SmallInteger, "How content_hash was computed.", server_default=text("1")),
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
    comment="Examples of tasks, by split. Text may be absent: a library ships embeddings and references.",
)

example_embedding = Table(
    "example_embedding",
    metadata,
    _required("example_id", BigInteger, "The example.", autoincrement=False),
    _required("task_id", Integer, "Its task, here again so that retrieval reads one table."),
    _required("embedding", Vector(DIMENSIONS), "Unit vector of the example's text in the encoder's input format."),
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
        # Tasks' vectors lie in clusters: with pgvector's 64 one in fifty can't be found.
        postgresql_with={"ef_construction": 400},
    ),
    comment="Embeddings of train examples, narrow and apart: what retrieval scans.",
)

adapter = Table(
    "adapter",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Number inside; traces name it."),
    _required("task_id", Integer, "The task it was trained for."),
    _required("base_model_id", Integer, "The base model it belongs to."),
    _required("name", Text, "What people call it; the task's name unless given."),
    _required("version", Integer, "1, 2, ... by name and base model."),
    _required(
        "status",
        Text,
        "staged: checked, not used. active: composed into jobs. retired: kept for replay.",
        server_default=text("'staged'"),
    ),
    _required("rank", Integer, "r of the factors."),
    _required("alpha", Double, "lora_alpha."),
    _required("use_rslora", Boolean, "Whether scaling is alpha/sqrt(r) instead of alpha/r."),
    _required("scaling", Double, "Factor on B A: alpha/r, or alpha/sqrt(r)."),
    _required("target_modules", _texts(), "Modules of the base model that it changes, by full name."),
    _required("parameter_count", BigInteger, "Numbers in its factors."),
    _required("byte_count", BigInteger, "Length of its safetensors file."),
    _required("sha256", Text, "Of its safetensors file; checked on every load."),
    _required("config", JSONB, "Its adapter_config.json, for export."),
    _required(
        "training",
        JSONB,
        "How it was trained: data digest, hyper-parameters, rows, seed; {} where unknown.",
        server_default=text("'{}'"),
    ),
    _required("created_by", RoleName(), "Who registered it.", server_default=text("current_user")),
    _created_at(),
    _optional("activated_at", DateTime(timezone=True), "When it last became active."),
    _optional("retired_at", DateTime(timezone=True), "When it was retired."),
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
    comment="LoRA adapters: one task, one base model, versions. The weights are in adapter_part.",
)

adapter_part = Table(
    "adapter_part",
    metadata,
    _required("adapter_id", Integer, "The adapter.", autoincrement=False),
    _required("part", Integer, "0, 1, ...: parts of 8 MB, in order.", autoincrement=False),
    _required("bytes", LargeBinary, "This part of the safetensors file."),
    PrimaryKeyConstraint("adapter_id", "part", name="adapter_part_stands_once"),
    ForeignKeyConstraint(
        ["adapter_id"], ["loracomp.adapter.id"], name="weights_belong_to_an_adapter", ondelete="CASCADE"
    ),
    CheckConstraint("part >= 0", name="part_must_not_be_negative"),
    CheckConstraint("octet_length(bytes) BETWEEN 1 AND 8388608", name="a_part_holds_at_most_8_mb"),
    comment="Safetensors files of adapters, in parts.",
)

measurement = Table(
    "measurement",
    metadata,
    _required("example_id", BigInteger, "The example.", autoincrement=False),
    _required("base_model_id", Integer, "The base model that the adapters belong to.", autoincrement=False),
    _required("task_id", Integer, "The example's task, here again: routing looks for tasks with measured examples."),
    _required(
        "choice_normalization",
        Text,
        "What the choices' log-likelihoods were divided by before their softmax: none, characters, tokens.",
    ),
    _required(
        "base_score",
        Double,
        "Log-probability of the right answer under the base model alone, in nats: given the choices, or per token of a "
        "text.",
    ),
    _optional("base_is_right", Boolean, "Whether the base model alone chooses right; null where there are no choices."),
    _required("adapter_ids", ARRAY(Integer), "Adapters that were measured."),
    _required(
        "gains",
        ARRAY(REAL),
        "Log-probability of the right answer under each of them, minus the base model's in the same batch.",
    ),
    _required("are_right", ARRAY(Boolean), "Whether each of them chooses right; null where there are no choices."),
    _optional("worker", Text, "Worker that measured last."),
    _required("measured_at", DateTime(timezone=True), "When it was measured last.", server_default=text("now()")),
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
    comment="What adapters are worth on examples: a narrow row an example and base model, which routing reads.",
)

policy = Table(
    "policy",
    metadata,
    _required("name", Text, "What jobs call it; 'default' is what jobs that name none use.", primary_key=True),
    _required("description", Text, "What it is for.", server_default=text("''")),
    _required(
        "router",
        Text,
        "retrieval; or a control: own_task, random, random_parameters, base.",
        server_default=text("'retrieval'"),
    ),
    _required("k", Integer, "Examples to retrieve.", server_default=text("30")),
    _required("temperature", Double, "Of the softmax over similarities.", server_default=text("0.1")),
    _required("top_p", Double, "Mass that the nucleus must reach.", server_default=text("0.95")),
    _required("max_adapters", Integer, "Adapters in a composition at most.", server_default=text("8")),
    _required(
        "min_similarity",
        Double,
        "Below it, nothing is composed and the base model answers.",
        server_default=text("0.0"),
    ),
    _required(
        "weighting",
        Text,
        "similarity: probabilities, renormalised over the kept. uniform: equal weights. measured: expected gains, of "
        "the adapters that are expected to help.",
        server_default=text("'similarity'"),
    ),
    _required("strategy", Text, "How adapters are merged.", server_default=text("'cat'")),
    _required(
        "density", Double, "Share of entries kept by ties, magnitude_prune and dare_*.", server_default=text("0.5")
    ),
    _required("seed", Integer, "Of dare_* masks, random and random_parameters.", server_default=text("0")),
    _required(
        "choice_normalization",
        Text,
        "What a choice's summed log-likelihood is divided by: none, characters, tokens.",
        server_default=text("'tokens'"),
    ),
    _created_at(),
    _required("updated_at", DateTime(timezone=True), "When it was last changed.", server_default=text("now()")),
    _required(
        "contrast",
        Double,
        "This times the base model's log-likelihood of a choice is subtracted from the mix's; 0: the mix alone.",
        server_default=text("0"),
    ),
    _required(
        "min_share",
        Double,
        "Tasks whose weight would be below this are left out, and the others share it; the first always stays.",
        server_default=text("0"),
    ),
    _required(
        "gain_prior",
        Double,
        "Draws expected gains towards 0: 0.1 counts as a tenth of the retrieved examples that gain nothing.",
        server_default=text("0.1"),
    ),
    _required(
        "gain_margin",
        Double,
        "Expected gain above which an adapter is composed, in nats, where weighting is measured.",
        server_default=text("0"),
    ),
    CheckConstraint("NOT loracomp.is_blank(name)", name="policy_name_must_not_be_blank"),
    _one_of("router", "retrieval own_task random random_parameters base", "router_must_be_a_known_one"),
    CheckConstraint("k BETWEEN 1 AND 200", name="k_must_be_between_1_and_200"),
    # BETWEEN, for NaN and infinity pass a bare comparison with zero.
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
    comment="Named settings of routing and merging. Jobs name one; traces keep the settings as they were.",
)

evaluation = Table(
    "evaluation",
    metadata,
    _required("name", Text, "What people call it.", primary_key=True),
    _required("description", Text, "What it measures.", server_default=text("''")),
    _optional("split", Text, "Split whose rows it asks; null where its jobs were inserted by hand."),
    _required("kind", Text, "predict: answers are compared. route: weights alone.", server_default=text("'predict'")),
    _optional("base_model", Text, "Base model that it asks; null where its jobs were inserted by hand."),
    _required(
        "exclude_own", Boolean, "Whether each row's own task is kept out of its mix.", server_default=text("false")
    ),
    _required("seed", Integer, "Of the order in which rows are drawn.", server_default=text("0")),
    _required("created_by", RoleName(), "Who started it.", server_default=text("current_user")),
    _created_at(),
    ForeignKeyConstraint(
        ["base_model"], ["loracomp.base_model.name"], name="evaluation_base_model_must_exist", onupdate="CASCADE"
    ),
    CheckConstraint("NOT loracomp.is_blank(name)", name="evaluation_name_must_not_be_blank"),
    _one_of("split", "train validation test", "evaluated_split_must_be_train_validation_or_test"),
    _one_of("kind", "predict route", "evaluation_kind_must_be_predict_or_route"),
    comment="Named sets of jobs whose expected answers are known.",
)

job = Table(
    "job",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="The job's number."),
    _required(
        "status",
        Text,
        "queued, running, succeeded, failed or cancelled. Only functions change it.",
        server_default=text("'queued'"),
    ),
    _required(
        "kind",
        Text,
        "predict: an answer. route: the weights alone. measure: what adapters are worth on an example.",
        server_default=text("'predict'"),
    ),
    _required("prompt", Text, "The text. All that an INSERT must name."),
    _optional("choices", _texts(), "Possible answers to score; null to generate."),
    _optional("max_new_tokens", Integer, "Tokens to generate at most; filled with 64 where there are no choices."),
    _required("stop", _texts(), "Texts that end a generation; not part of the answer.", server_default=text("'{}'")),
    _required("policy", Text, "Settings of routing and merging.", server_default=text("'default'")),
    _optional("base_model", Text, "Filled with the default base model."),
    _required("priority", Integer, "0 to 1000; one step is worth a minute of waiting.", server_default=text("0")),
    _required("run_at", DateTime(timezone=True), "Not before this time.", server_default=text("now()")),
    _optional("idempotency_key", Text, "Yours; the same key twice is refused, or with submit_job one job."),
    _required("tags", JSONB, "Yours, to filter by; not shown to the model.", server_default=text("'{}'")),
    _required(
        "exclude_tasks", _texts(), "Tasks whose examples and adapters must not be used.", server_default=text("'{}'")
    ),
    _optional("tasks", _texts(), "Tasks whose adapters alone may be composed; null: all that the submitter may use."),
    _optional(
        "weights", ARRAY(Double), "Weights of those tasks' adapters, in their order, instead of retrieval; else null."
    ),
    _required("max_attempts", Integer, "Attempts before the job ends failed.", server_default=text("3")),
    _required("timeout_s", Integer, "Seconds a worker may hold it in one attempt.", server_default=text("600")),
    _optional("task", Text, "Task that it comes from; evaluations and measuring only."),
    _optional("expected", Text, "The right answer; evaluations and measuring only."),
    _optional("evaluation", Text, "Evaluation that it belongs to."),
    # No foreign key: answers to one row stay comparable when the row goes.
    _optional(
        "example_id",
        BigInteger,
        "Example that it asks; evaluations (the same row under each policy) and measuring.",
    ),
    _required(
        "submitted_by",
        RoleName(),
        "Who inserted it; decides which tasks it may retrieve.",
        server_default=text("current_user"),
    ),
    _created_at(),
    _required(
        "due",
        DateTime(timezone=True),
        "run_at less priority x 60 s, and 1000 minutes later to evaluate or measure: the order of claims. Filled by a "
        "trigger.",
        server_default=text("now()"),
    ),
    _required("attempts", Integer, "Claims so far, minus those given back.", server_default=text("0")),
    _required(
        "expired_leases", Integer, "Leases that ran out. Above 0, the job is claimed alone.", server_default=text("0")
    ),
    _optional("worker", Text, "Worker that holds it, or held it last."),
    _optional("claimed_together", Integer, "Jobs in the claim that it was part of; an expiry counts where it is 1."),
    _optional("lease_token", BigInteger, "Fence of the current lease; every later write must show it."),
    _optional("claimed_at", DateTime(timezone=True), "When the current attempt began."),
    _optional(
        "lease_expires_at",
        DateTime(timezone=True),
        "When the lease ends unless renewed; never later than the timeout allows.",
    ),
    _optional("finished_at", DateTime(timezone=True), "When it succeeded, failed or was cancelled."),
    _optional("error_code", Text, "Short name of the last error."),
    _optional("error", Text, "The last error, in words."),
    _required(
        "temperature",
        Double,
        "Of generated text. 0: the most likely token each time; else drawn by softmax(logits / temperature).",
        server_default=text("0"),
    ),
    _required(
        "top_p",
        Double,
        "Of generated text: drawn from the fewest tokens whose probability reaches this.",
        server_default=text("1"),
    ),
    _optional("seed", BigInteger, "Of generated text that is drawn; null: the job's number."),
    _required(
        "scheduled",
        Boolean,
        "Whether it waits for run_at; a claim ends that once the time has come. Filled by a trigger.",
        server_default=text("false"),
    ),
    # Here and not in the trace: reports that add it up read no traces, which are ten times as large.
    _optional("is_correct", Boolean, "Whether the answer is the expected one; null where none is known."),
    _optional("adapter_ids", ARRAY(Integer), "Adapters to measure on its example; jobs of kind measure only."),
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
    # One space for each submitter: nobody learns of another's keys.
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
    # Checked with every change of status: what is empty costs nothing.
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
        "array_position(stop, NULL) IS NULL AND array_position(stop, '') IS NULL AND cardinality(stop) <= 16",
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
    CheckConstraint("array_position(exclude_tasks, NULL) IS NULL", name="exclude_tasks_must_not_hold_null"),
    CheckConstraint("tasks IS NULL OR cardinality(tasks) BETWEEN 1 AND 64", name="tasks_must_be_a_list_of_1_to_64"),
    CheckConstraint(
        "tasks IS NULL OR (array_position(tasks, NULL) IS NULL AND loracomp.texts_are_distinct(tasks))",
        name="tasks_must_be_distinct_and_none_null",
    ),
    CheckConstraint(
        "tasks IS NULL OR loracomp.texts_length(tasks) <= 100000",
        name="tasks_must_be_at_most_100000_characters_together",
    ),
    CheckConstraint(
        "weights IS NULL OR (tasks IS NOT NULL AND cardinality(weights) = cardinality(tasks))",
        name="weights_must_be_one_for_each_of_the_tasks",
    ),
    # NaN counts as the largest number.
    CheckConstraint(
        "weights IS NULL OR (array_position(weights, NULL) IS NULL AND 0 < ALL (weights) AND 1 >= ALL (weights))",
        name="weights_must_be_above_0_and_at_most_1",
    ),
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
    # Each submitter's jobs in their order: claims look at the first of each.
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
    # Without the task: a submitter would find the names of hidden ones by the rows that an index finds and row security
    # takes away, which EXPLAIN ANALYZE counts.
    Index("job_evaluation", "evaluation", postgresql_where=text("evaluation IS NOT NULL")),
    # What evaluates and what measures waits until nothing else is due.
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
    comment="Requests for predictions. INSERT a prompt; read loracomp.job_result.",
    # Status changes rewrite rows: leave them room on their page, and clean up early and at full speed, however long the
    # history is: what is dead at the head of the queue, every claim walks through.
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
    _required("base_model", Text, "Base model of the jobs."),
    _required("submitted_by", RoleName(), "Who submitted them."),
    _required(
        "served_at",
        DateTime(timezone=True),
        "When a claim last took the first of its jobs.",
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
    comment="When each submitter was last served: claims take turns.",
    # A few rows that every claim updates in place.
    postgresql_with={"fillfactor": "20", "autovacuum_vacuum_cost_delay": "0"},
)

queue_limit = Table(
    "queue_limit",
    metadata,
    _required("id", SmallInteger, "Always 1.", primary_key=True, autoincrement=False, server_default=text("1")),
    _optional("in_all", BigInteger, "Jobs that may wait, those of evaluations apart; null: any number."),
    _optional("per_submitter", BigInteger, "Jobs of one submitter that may wait; null: any number."),
    CheckConstraint("id = 1", name="there_is_one_row_of_queue_limits"),
    CheckConstraint("in_all BETWEEN 1 AND 1000000000", name="in_all_must_be_between_1_and_1000000000"),
    CheckConstraint("per_submitter BETWEEN 1 AND 1000000000", name="per_submitter_must_be_between_1_and_1000000000"),
    comment="How many jobs may wait. set_queue_limits sets it; administrators' own jobs are not bound.",
)

reported_tag = Table(
    "reported_tag",
    metadata,
    _required("key", Text, "Key of tags that analysts may see.", primary_key=True),
    CheckConstraint("NOT loracomp.is_blank(key)", name="reported_tag_must_not_be_blank"),
    CheckConstraint("char_length(key) <= 100", name="reported_tag_must_be_at_most_100_characters"),
    comment="Tags that views of bi show. set_reported_tags sets them.",
)

purged_day = Table(
    "purged_day",
    metadata,
    _required("day", Date, "Day on which the jobs ended, in UTC."),
    _required("submitted_by", RoleName(), "Database role that submitted them."),
    _required("policy", Text, "Name of the settings of routing and merging."),
    _required("base_model", Text, "Frozen language model that answered, or was asked for."),
    _optional("evaluation", Text, "Named set of jobs; null for everyday jobs."),
    _optional("own_task", Text, "Task that they come from, where it is known."),
    _required("jobs", BigInteger, "Jobs that ended and were purged since."),
    _required("succeeded", BigInteger, "Those that were answered."),
    _required("failed", BigInteger, "Those that ended failed."),
    _required("attempts", BigInteger, "Attempts that they took."),
    _required("prompt_tokens", BigInteger, "Tokens of the prompts of those that were answered."),
    _required("output_tokens", BigInteger, "Tokens that were scored or generated for them."),
    _required("compute_s", Double, "Their part of the seconds that their batches took."),
    _required("asked", BigInteger, "Jobs whose right answer is known."),
    _required("n", BigInteger, "Those of them that were answered."),
    _required("correct", BigInteger, "Answers that were the expected ones."),
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
    comment="What a day's jobs answered, cost and scored, summed up when they were purged; reports add it.",
)

purged_tag = Table(
    "purged_tag",
    metadata,
    _required("day", Date, "Day of the answers, in UTC."),
    _required("tag", Text, "Key of a tag that analysts could see when the jobs were purged."),
    _required("value", Text, "Its value, as text, of 200 characters at most."),
    _required("label", Text, "The choice that was the answer; empty where text was generated."),
    _required("policy", Text, "Name of the settings of routing and merging."),
    _required("base_model", Text, "Frozen language model."),
    _required("n", BigInteger, "Answers whose jobs were purged since."),
    _required("asked", BigInteger, "Those of which the right answer is known."),
    _required("correct", BigInteger, "Those of them that were the expected ones."),
    PrimaryKeyConstraint("day", "tag", "value", "label", "policy", "base_model", name="purged_tag_pkey"),
    CheckConstraint("n > 0 AND correct >= 0 AND correct <= asked AND asked <= n", name="purged_labels_must_add_up"),
    comment="Answers of purged jobs by tag, label and day; reports add it.",
)

queue_count = Table(
    "queue_count",
    metadata,
    _required("submitted_by", RoleName(), "Submitter; the empty name: all of them.", primary_key=True),
    _required("queued", BigInteger, "Jobs that waited when they were counted."),
    _required("last_id", BigInteger, "Newest job then: what came later has a higher id."),
    _required("counted_at", DateTime(timezone=True), "When that was.", server_default=text("clock_timestamp()")),
    comment="What limits compare with, so that the queue is not counted with each INSERT.",
    postgresql_with={"fillfactor": "50"},
)

worker = Table(
    "worker",
    metadata,
    _required("name", Text, "Name that leases and predictions carry.", primary_key=True),
    _required("status", Text, "idle, busy, stopping or stopped, as it said last; worker_status knows who is gone."),
    _required("host", Text, "Machine that it runs on."),
    _required("pid", Integer, "Its process there."),
    _required("code_version", Text, "Version of loracomp that it runs."),
    _required("base_model", Text, "Base model that it serves."),
    _required("device", Text, "Device and number type, such as cpu/bfloat16."),
    _required("login", RoleName(), "Role that it logged in as.", server_default=text("session_user")),
    _required(
        "started_at",
        DateTime(timezone=True),
        "When it began, by the database's clock.",
        server_default=text("now()"),
    ),
    _required("seen_at", DateTime(timezone=True), "When it last reported.", server_default=text("now()")),
    _optional("looked_at", DateTime(timezone=True), "When it last asked for jobs; null where never."),
    _required("silent_after_s", Double, "Seconds without a report after which it counts as gone."),
    _count("claimed", "Jobs that it has claimed since it began."),
    _count("succeeded", "Jobs that it has answered."),
    _count("failed", "Failures that it has written, those that are tried again included."),
    _count("released", "Jobs that it has given back uncharged."),
    _count("dropped", "Results that came after their lease was lost."),
    _one_of("status", "idle busy stopping stopped", "worker_status_must_be_a_known_one"),
    # Views add it to a time: one that no interval holds would break them for everybody.
    CheckConstraint("silent_after_s BETWEEN 0 AND 86400", name="silent_after_s_must_be_between_0_and_86400"),
    comment="Workers as they last reported: who is alive, doing what.",
    # A few rows that are updated in place every few seconds.
    postgresql_with={"fillfactor": "50"},
)

prediction = Table(
    "prediction",
    metadata,
    # No foreign key but the job's: a trace outlives what else it names.
    _required("job_id", BigInteger, "The job it answers.", primary_key=True, autoincrement=False),
    _optional("output", Text, "The answer; null for a job of kind route."),
    _optional("choice_index", Integer, "1-based: choices[choice_index] is the output."),
    _optional("choice_scores", ARRAY(Double), "Log-likelihood of each choice in nats, normalised as the policy says."),
    _optional("query_embedding", HALFVEC(), "The job's unit vector, for other settings later."),
    _required("example_ids", ARRAY(BigInteger), "Retrieved examples, nearest first.", server_default=text("'{}'")),
    _required("example_tasks", _texts(), "Their tasks.", server_default=text("'{}'")),
    _required("similarities", ARRAY(Double), "Their cosine similarities.", server_default=text("'{}'")),
    _required("tasks", _texts(), "Tasks by falling probability.", server_default=text("'{}'")),
    _required("probabilities", ARRAY(Double), "P(task) of each.", server_default=text("'{}'")),
    _required(
        "weights",
        ARRAY(Double),
        "Weight of each in the composition; 0 outside the nucleus.",
        server_default=text("'{}'"),
    ),
    _required("composed_tasks", _texts(), "Tasks whose adapters were composed.", server_default=text("'{}'")),
    _required("adapter_ids", ARRAY(Integer), "Their adapters.", server_default=text("'{}'")),
    _required("adapter_sha256", _texts(), "Hashes of the adapters' files.", server_default=text("'{}'")),
    _required("adapter_weights", ARRAY(Double), "Weight of each composed adapter.", server_default=text("'{}'")),
    _required("policy_settings", JSONB, "The policy's settings as they were, with its name."),
    _optional("fallback", Text, "Why the base model answered alone; null where adapters were composed."),
    _optional(
        "composition_digest",
        Text,
        "Sha256 of what decides the result: base model, adapters, their scalings and weights, strategy, density, seed.",
    ),
    _optional(
        "norm_ratio",
        Double,
        "Norm of the composed change over that of the exact weighted sum; null for the base model alone.",
    ),
    _optional(
        "cosine",
        Double,
        "Cosine between the composed change and the exact weighted sum; null for the base model alone.",
    ),
    _required("prompt_tokens", Integer, "Tokens of the prompt.", server_default=text("0")),
    _required("output_tokens", Integer, "Tokens scored or generated.", server_default=text("0")),
    _required(
        "timings", JSONB, "Milliseconds of each step for the batch that it was part of.", server_default=text("'{}'")
    ),
    _required("batch_size", Integer, "Jobs in that batch.", server_default=text("1")),
    _optional("worker", Text, "Worker that answered."),
    _optional("device", Text, "Device and number type, such as cpu/bfloat16."),
    _required("attempt", Integer, "Attempt that succeeded.", server_default=text("1")),
    _required("base_model", Text, "Name of the base model."),
    _required("base_fingerprint", Text, "Its fingerprint."),
    _required("encoder", Text, "Name of the encoder and its input version, such as all-MiniLM-L6-v2/1."),
    _required("code_version", Text, "Version of loracomp that answered."),
    _created_at(),
    # Text and not a name, which takes 64 bytes in every row.
    _required("submitted_by", Text, "Who submitted the job, and so may see this row."),
    _optional(
        "eligible_task_count", Integer, "Tasks that the job might have retrieved; null in traces older than the column."
    ),
    _optional(
        "expected_gains",
        ARRAY(Double),
        "What the adapter of each of `tasks` was expected to gain, in nats; null where nothing was measured.",
    ),
    # Whoever deletes a job by hand leaves no answer behind.
    ForeignKeyConstraint(["job_id"], ["loracomp.job.id"], name="a_prediction_answers_a_job", ondelete="CASCADE"),
    # What reports cast and add up: a faulty worker must break none.
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
    CheckConstraint("batch_size BETWEEN 1 AND 1000000", name="batch_size_must_be_positive"),
    CheckConstraint("prompt_tokens >= 0 AND output_tokens >= 0", name="tokens_must_not_be_negative"),
    # Of the days that views show: a few kilobytes, for the rows come in their order.
    Index("prediction_day", text("((created_at AT TIME ZONE 'UTC')::date)"), postgresql_using="brin"),
    comment="Answers, each with its whole trace in arrays; views unnest them.",
    # Two rows a page. To compress parts of each and move them out of line took a quarter of a record's CPU time.
    postgresql_with={"toast_tuple_target": "4080"},
)

audit_event = Table(
    "audit_event",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="Order of events."),
    _required("at", DateTime(timezone=True), "When.", server_default=text("clock_timestamp()")),
    _required("actor", RoleName(), "Role that did it.", server_default=text("session_user")),
    _required("entity", Text, "Table that changed, such as job or policy."),
    _optional("entity_id", BigInteger, "Number of the row, where it has one."),
    _optional("entity_name", Text, "Name of the row, where it has one."),
    _required("action", Text, "insert, update or delete."),
    _optional("old_status", Text, "Status before, for jobs and adapters."),
    _optional("new_status", Text, "Status after, for jobs and adapters."),
    _optional("attempt", Integer, "The job's attempts after the change."),
    _optional("worker", Text, "Worker that did it."),
    _optional("reason", Text, "Error code or the operator's reason."),
    _optional("before", JSONB, "The row before; never a prompt."),
    _optional("after", JSONB, "The row after; never a prompt."),
    _optional(
        "login",
        RoleName(),
        "Login behind it, where actor is a role that the session had set; null where they are the same.",
        # As Postgres writes it, for where it is null Alembic can compare nothing but its text.
        server_default=text(
            "NULLIF(SESSION_USER, COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER))"
        ),
    ),
    _one_of("action", "insert update delete", "action_must_be_insert_update_or_delete"),
    Index("audit_event_of_job", "entity_id", postgresql_where=text("entity = 'job'")),
    Index("audit_event_by_entity", "entity", "at", postgresql_where=text("entity <> 'job'")),
    comment="Who changed what, when: written by triggers, appended only.",
)

report_refresh = Table(
    "report_refresh",
    metadata,
    _required("report", Text, "Materialized view of loracomp.", primary_key=True),
    _required("refreshed_at", DateTime(timezone=True), "Up to when it counts.", server_default=text("now()")),
    _optional("seconds", Double, "Seconds that its last refresh took; null where there was none since it was made."),
    comment="When the materialized views that reports rest on were last worked out.",
)

sql_object = Table(
    "sql_object",
    metadata,
    _required("path", Text, "File under sql/.", primary_key=True),
    _required("position", Integer, "Order in which it was applied; dropped in reverse."),
    _required("drops", _texts(), "Statements that drop what the file made."),
    _required("checksum", Text, "Sha256 of the file as applied."),
    _required("applied_at", DateTime(timezone=True), "When.", server_default=text("now()")),
    comment="Which files of sql/ stand in this database, as they were applied.",
)
