"""Base models, the encoder, tasks with their examples, and adapters."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Identity,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB

from loracomp.database.tables.columns import (
    DIMENSIONS,
    IN_ROW,
    NO_STATISTICS,
    NOT_COMPRESSED,
    TIME,
    HalfVec,
    RoleName,
    check,
    created_at,
    index,
    metadata,
    one_line,
    one_of,
    optional,
    references,
    required,
    set_storage,
    shallow,
    short_name,
    texts,
)

base_model = Table(
    "base_model",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; people use the name."),
    required("name", Text, "Name by which jobs refer to it."),
    required(
        "source", Text, "Where it was loaded from: hub id, folder, GGUF file, or package:NAME of an installed package."
    ),
    optional("revision", Text, "Revision on the hub; null if the source has none."),
    required("fingerprint", Text, "Sha256 of its weights, settings and tokenizer as they came."),
    required("architecture", Text, "Class of the model in transformers, such as LlamaForCausalLM."),
    required("context_length", Integer, "Maximum number of tokens of prompt and answer together."),
    required("parameter_count", BigInteger, "Number of parameters of the model."),
    required(
        "modules",
        JSONB,
        "Modules that adapters may change, as an object from name to [d_out, d_in]; new adapters are checked "
        "against it.",
    ),
    required("is_default", Boolean, "Whether jobs that name no base model use this one.", default="false"),
    created_at(),
    required("has_chat_template", Boolean, "Whether the model's tokenizer has a chat template.", default="false"),
    UniqueConstraint("name", name="base_model_name_is_taken"),
    check("base_model_name_must_not_be_blank", "NOT loracomp.is_blank(name)"),
    short_name("name", "base_model_name"),
    one_line("name", "base_model_name"),
    shallow("modules"),
    check("fingerprint_must_be_a_sha256", "fingerprint ~ '^[0-9a-f]{64}$'"),
    check("context_length_must_be_positive", "context_length BETWEEN 1 AND 100000000"),
    index("one_default_base_model", "is_default", "is_default", unique=True),
    comment="Frozen causal language models. Each adapter was trained for one of them.",
)


encoder = Table(
    "encoder",
    metadata,
    required(
        "id",
        SmallInteger,
        "Always 1: a database has one encoder.",
        primary_key=True,
        autoincrement=False,
        default="1",
    ),
    required("name", Text, "Name of the encoder."),
    required("source", Text, "Where it was loaded from: hub id, folder, or package:NAME of an installed package."),
    optional("revision", Text, "Revision on the hub; null if the source has none."),
    required("fingerprint", Text, "Sha256 of the original weight files."),
    required(
        "identity",
        Text,
        "Sha256 of weights, settings and tokenizer. The same weights with other settings make other vectors.",
    ),
    required("dimensions", Integer, "Length of its vectors."),
    required(
        "input_version",
        SmallInteger,
        "Format of the text that it embeds. 1: prompt, newline, choices joined by ' | '. "
        "2: prompt and choices embedded separately, each half of the vector. "
        "3: as 2, plus the lengths of prompt and choices and the number of choices.",
        default="1",
    ),
    created_at(),
    required(
        "is_ready",
        Boolean,
        "False while all examples are being embedded again; until then no job is claimed.",
        default="true",
    ),
    check("a_database_has_one_encoder", "id = 1"),
    short_name("name", "encoder_name"),
    check("an_index_takes_vectors_of_at_most_4000_dimensions", "dimensions BETWEEN 1 AND 4000"),
    comment="The frozen sentence encoder that embeds examples and jobs.",
)

task = Table(
    "task",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; people use the name."),
    required("name", Text, "Name of the task, such as piqa."),
    required("family", Text, "Family of the task, such as nli; for reports.", default="'other'"),
    required("description", Text, "One sentence about what the task asks for.", default="''"),
    optional(
        "reader_role", RoleName(), "Role whose members' jobs may use the task; null: everybody's jobs may use it."
    ),
    created_at(),
    UniqueConstraint("name", name="task_name_is_taken"),
    check("task_name_must_not_be_blank", "NOT loracomp.is_blank(name)"),
    short_name("name", "task_name"),
    one_line("name", "task_name"),
    # A library has a folder for each task's adapter.
    check("task_name_must_have_no_empty_part_and_no_part_of_dots", "name !~ '(^|/)[.]*(/|$)'"),
    comment="Tasks, such as piqa, with training examples and adapters.",
)

example = Table(
    "example",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="Internal number."),
    required("task_id", Integer, "Task that the example belongs to."),
    required("split", Text, "train, validation or test. Only train examples are retrieved."),
    optional("prompt", Text, "Text shown to the model; null if a library ships the example without its text."),
    optional("choices", texts(), "Possible answers; null if the answer is free text."),
    optional("label", Text, "The right answer (gold label); one of the choices if there are any."),
    optional("source_ref", Text, "Where the row came from, such as piqa/train#1532."),
    required("content_hash", LargeBinary, "Sha256 of the raw fields as canonical JSON."),
    required("hash_version", SmallInteger, "Version of the way in which content_hash is computed.", default="1"),
    created_at(),
    references("example_task_must_exist", "task_id", "loracomp.task.id", ondelete="CASCADE"),
    UniqueConstraint("task_id", "content_hash", name="a_row_stands_in_one_split_of_its_task_once"),
    UniqueConstraint("id", "task_id", name="example_with_its_task"),
    one_of("split", "train validation test", "split_must_be_train_validation_or_test"),
    check("content_hash_must_be_a_sha256", "octet_length(content_hash) = 32"),
    check("an_example_needs_a_prompt_or_a_source_ref", "prompt IS NOT NULL OR source_ref IS NOT NULL"),
    check("label_must_be_one_of_the_choices", "choices IS NULL OR label IS NULL OR label = ANY (choices)"),
    # Routing of jobs without choices looks for tasks with such examples.
    index("example_of_text", "task_id", "split = 'train' AND prompt IS NOT NULL AND choices IS NULL"),
    comment="Examples of tasks, by split. Text may be missing: a library ships only embeddings and references.",
)
set_storage(example, NO_STATISTICS, "prompt choices label")

example_embedding = Table(
    "example_embedding",
    metadata,
    required("example_id", BigInteger, "The example.", autoincrement=False),
    required("task_id", Integer, "Task of the example, copied from example so that retrieval reads only one table."),
    required(
        "embedding",
        HalfVec(DIMENSIONS),
        "Unit vector of the example, in half precision; the encoder made it from prompt and choices.",
        info=IN_ROW,
    ),
    PrimaryKeyConstraint("example_id", name="an_example_has_one_embedding"),
    references(
        "embedding_belongs_to_an_example_of_its_task",
        "example_id task_id",
        "loracomp.example.id loracomp.example.task_id",
        ondelete="CASCADE",
    ),
    index("example_embedding_task", "task_id"),
    index(
        "example_embedding_hnsw",
        "embedding",
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "public.halfvec_cosine_ops"},
        # Vectors of a task form clusters. With pgvector's default ef_construction of 64, one vector in fifty is never
        # found.
        postgresql_with={"ef_construction": 400},
    ),
    comment="Embeddings of train examples, in a separate table with short rows, because retrieval scans it.",
)

adapter = Table(
    "adapter",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; traces refer to it."),
    required("task_id", Integer, "Task that the adapter was trained for."),
    required("base_model_id", Integer, "Base model that the adapter was trained for."),
    required("name", Text, "Name of the adapter; by default the task's name."),
    required("version", Integer, "Version: 1, 2, ... among adapters with this name and base model."),
    required(
        "status",
        Text,
        "staged: checked, but not used yet. active: used for jobs. retired: no longer used, but kept for replay.",
        default="'staged'",
    ),
    required("rank", Integer, "Rank r of the factors A [r, d_in] and B [d_out, r]."),
    required("alpha", Double, "alpha, called lora_alpha in PEFT; it decides the scaling."),
    required("use_rslora", Boolean, "Whether scaling is alpha/sqrt(r) instead of alpha/r."),
    required("scaling", Double, "Factor by which B A is multiplied: alpha/r, or alpha/sqrt(r)."),
    required("target_modules", texts(), "Full names of the base model's modules that the adapter changes."),
    required("parameter_count", BigInteger, "Number of parameters: elements of all its factors."),
    required("byte_count", BigInteger, "Size of its safetensors file in bytes."),
    required("sha256", Text, "Sha256 of its safetensors file; checked on every load."),
    required(
        "digest",
        Text,
        "Sha256 of the file's sha256 and each module's scaling. Two adapters with the same digest compute the same.",
    ),
    required("config", JSONB, "Its adapter_config.json, for export."),
    required(
        "training",
        JSONB,
        "How it was trained: data digest, hyper-parameters, rows, seed; {} if unknown.",
        default="'{}'",
    ),
    required("created_by", RoleName(), "Who registered it.", default="current_user"),
    created_at(),
    optional("activated_at", TIME, "When the adapter last became active."),
    optional("retired_at", TIME, "When the adapter was retired."),
    references("adapter_task_must_exist", "task_id", "loracomp.task.id"),
    references("adapter_base_model_must_exist", "base_model_id", "loracomp.base_model.id"),
    UniqueConstraint("base_model_id", "name", "version", name="adapter_version_is_taken"),
    one_of("status", "staged active retired", "adapter_status_must_be_staged_active_or_retired"),
    check("adapter_name_must_not_be_blank", "NOT loracomp.is_blank(name)"),
    one_line("name", "adapter_name"),
    check("adapter_version_must_be_positive", "version >= 1"),
    check("rank_must_be_positive", "rank BETWEEN 1 AND 65536"),
    check("alpha_must_be_positive_and_finite", "alpha BETWEEN 1e-6 AND 1e6"),
    check("scaling_must_be_positive_and_finite", "scaling BETWEEN 1e-9 AND 1e6"),
    check("an_adapter_must_target_a_module", "cardinality(target_modules) > 0"),
    shallow("config"),
    shallow("training"),
    check("adapter_sha256_must_be_a_sha256", "sha256 ~ '^[0-9a-f]{64}$'"),
    check("adapter_digest_must_be_a_sha256", "digest ~ '^[0-9a-f]{64}$'"),
    index("one_active_adapter_a_task_and_base_model", "task_id base_model_id", "status = 'active'", unique=True),
    comment="Versions of LoRA adapters, each for one task and one base model. The weights are in adapter_part.",
)

adapter_part = Table(
    "adapter_part",
    metadata,
    required("adapter_id", Integer, "The adapter.", autoincrement=False),
    required(
        "part", Integer, "Number of the part, from 0. Each part has 8 MB; the last may be shorter.", autoincrement=False
    ),
    required("bytes", LargeBinary, "The bytes of this part of the safetensors file.", info=NOT_COMPRESSED),
    PrimaryKeyConstraint("adapter_id", "part", name="adapter_part_stands_once"),
    references("weights_belong_to_an_adapter", "adapter_id", "loracomp.adapter.id", ondelete="CASCADE"),
    check("part_must_not_be_negative", "part >= 0"),
    check("a_part_holds_at_most_8_mb", "octet_length(bytes) BETWEEN 1 AND 8388608"),
    comment="The adapters' safetensors files, cut into parts of 8 MB.",
)
