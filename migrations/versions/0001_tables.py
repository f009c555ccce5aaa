"""Creates the tables, and the functions that their constraints call."""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, Vector
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


class RoleName(UserDefinedType[str]):
    """Postgres's own type for identifiers."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "name"


# Constraints call these, so they belong to the tables and not to sql/.
# White space: Unicode's, and the four separators that Python counts as such, too.
FUNCTIONS = r"""
CREATE FUNCTION loracomp.white_space() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
COMMENT ON FUNCTION loracomp.white_space IS
'White space as the inside of a regular expression''s brackets: the same on every server, where \s is not.';
CREATE FUNCTION loracomp.is_blank(value text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN value COLLATE "C" !~ ('[^' || loracomp.white_space() || ']');
COMMENT ON FUNCTION loracomp.is_blank IS 'Whether a text has nothing but white space; null for null.';
CREATE FUNCTION loracomp.texts_are_not_blank(texts text[]) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN NOT EXISTS (SELECT FROM unnest(texts) AS t (value) WHERE t.value IS NULL OR loracomp.is_blank(t.value));
COMMENT ON FUNCTION loracomp.texts_are_not_blank IS 'Whether no text of the array is null or only white space.';
CREATE FUNCTION loracomp.texts_are_distinct(texts text[]) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (SELECT count(DISTINCT t.value) = count(t.value) FROM unnest(texts) AS t (value));
COMMENT ON FUNCTION loracomp.texts_are_distinct IS 'Whether no text stands in the array twice.';
CREATE FUNCTION loracomp.texts_length(texts text[]) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (SELECT coalesce(sum(char_length(t.value)), 0) FROM unnest(texts) AS t (value));
COMMENT ON FUNCTION loracomp.texts_length IS 'Characters of all texts of the array together.';
"""

# No rollback undoes a sequence.
SEQUENCES = """
CREATE SEQUENCE loracomp.rescued_jobs MINVALUE 0 START 0;
COMMENT ON SEQUENCE loracomp.rescued_jobs IS 'Counter: jobs taken back after their lease ran out.';
CREATE SEQUENCE loracomp.refused_inserts MINVALUE 0 START 0;
COMMENT ON SEQUENCE loracomp.refused_inserts IS
'Counter: INSERT statements refused because a limit of the queue was reached.';
CREATE SEQUENCE loracomp.queue_full_until MINVALUE 0 START 0;
COMMENT ON SEQUENCE loracomp.queue_full_until IS
'Until when a full queue is not counted again, in milliseconds since 1970.';
-- A sequence's first nextval gives its start. From now on each counts one.
SELECT nextval('loracomp.rescued_jobs'), nextval('loracomp.refused_inserts');
"""

# Attributes are columns of loracomp.prediction, by name and type.
TRACE = """
CREATE TYPE loracomp.route_trace AS (
    query_embedding public.halfvec,
    example_ids bigint[],
    example_tasks text[],
    similarities double precision[],
    tasks text[],
    probabilities double precision[],
    weights double precision[],
    composed_tasks text[],
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[],
    policy_settings jsonb,
    fallback text,
    eligible_task_count integer
);
COMMENT ON TYPE loracomp.route_trace IS
'What routing decided for a job: columns of loracomp.prediction, which holds it. Of workers'' own use.'
"""

# How many predictions each router has: without it reports are planned for a half per cent of them.
STATISTICS = "CREATE STATISTICS loracomp.prediction_router ON (policy_settings ->> 'router') FROM loracomp.prediction"

# Numbers don't compress: pglz would be tried on each value, for nothing.
NOT_COMPRESSED = {
    "adapter_part": ("bytes",),
    "prediction": (
        "choice_scores", "similarities", "probabilities", "weights", "adapter_sha256", "adapter_weights",
        "composition_digest", "base_fingerprint",
    ),
}  # fmt: skip

# What submitters could find out by EXPLAIN, of jobs that they don't see; and what erasing would leave behind.
NO_STATISTICS = {
    "job": (
        "prompt", "choices", "stop", "idempotency_key", "tags", "exclude_tasks", "task", "expected", "error",
        "lease_token",
    ),
    "prediction": ("output",),
    "example": ("prompt", "choices", "answer"),
}  # fmt: skip

# What jobs use unless they say otherwise; one policy a strategy; and the controls of an honest evaluation.
POLICIES = """
INSERT INTO loracomp.policy (name, description, router, weighting, strategy, max_adapters, contrast) VALUES
('default', 'Similar examples choose the adapters; their exact weighted sum (cat).', 'retrieval', 'similarity', 'cat', 8, 0),
('cat', 'As default, merged by Concatenation: exactly the weighted sum.', 'retrieval', 'similarity', 'cat', 8, 0),
('linear', 'As default, merged by Linear, as the paper does.', 'retrieval', 'similarity', 'linear', 8, 0),
('ties', 'As default, merged by TIES.', 'retrieval', 'similarity', 'ties', 8, 0),
('magnitude_prune', 'As default, merged by Magnitude Prune.', 'retrieval', 'similarity', 'magnitude_prune', 8, 0),
('dare_linear', 'As default, merged by DARE and Linear.', 'retrieval', 'similarity', 'dare_linear', 8, 0),
('dare_ties', 'As default, merged by DARE and TIES.', 'retrieval', 'similarity', 'dare_ties', 8, 0),
('nearest', 'The adapter of the most probable task alone.', 'retrieval', 'similarity', 'linear', 1, 0),
('contrast', 'As default, minus 0.3 times the base model''s score of each choice.', 'retrieval', 'similarity', 'cat', 8, 0.3),
('nearest_contrast', 'As nearest, minus 0.3 times the base model''s score of each choice.', 'retrieval', 'similarity', 'cat', 1, 0.3),
('uniform', 'Control: the nucleus with equal weights.', 'retrieval', 'uniform', 'cat', 8, 0),
('base', 'Control: the base model alone.', 'base', 'similarity', 'linear', 8, 0),
('own_task', 'Control: the adapter of the job''s own task alone.', 'own_task', 'similarity', 'linear', 1, 0),
('own_task_contrast', 'Control: as own_task, minus 0.3 times the base model''s score of each choice.', 'own_task', 'similarity', 'cat', 8, 0.3),
('random', 'Control: random adapters with the weights that retrieval gave.', 'random', 'similarity', 'cat', 8, 0),
('random_parameters', 'Control: random numbers of the same norm.', 'random_parameters', 'similarity', 'cat', 8, 0)
"""

LIMITS = """
INSERT INTO loracomp.queue_limit DEFAULT VALUES;
INSERT INTO loracomp.queue_count (submitted_by, queued, last_id, counted_at) VALUES ('', 0, 0, '-infinity')
"""


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS bi")
    op.execute(FUNCTIONS)
    op.execute(SEQUENCES)
    op.create_table(
        "base_model",
        sa.Column(
            "id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="Number inside; people use the name."
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="What jobs and people call it."),
        sa.Column(
            "source", sa.Text(), nullable=False, comment="Hub id, folder, GGUF file, or package:NAME that carries one."
        ),
        sa.Column("revision", sa.Text(), nullable=True, comment="Revision at the hub; null where the source has none."),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="Sha256 of the weight files as they came."),
        sa.Column("architecture", sa.Text(), nullable=False, comment="Class of the model, as transformers names it."),
        sa.Column("context_length", sa.Integer(), nullable=False, comment="Longest input with its answer, in tokens."),
        sa.Column("parameter_count", sa.BigInteger(), nullable=False, comment="Parameters of the model."),
        sa.Column(
            "modules",
            postgresql.JSONB(),
            nullable=False,
            comment="Every linear module: its name to [d_out, d_in]; adapters are checked against it.",
        ),
        sa.Column(
            "is_default",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether jobs that name no base model mean this one.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.CheckConstraint("fingerprint ~ '^[0-9a-f]{64}$'", name="fingerprint_must_be_a_sha256"),
        sa.CheckConstraint("NOT loracomp.is_blank(name)", name="base_model_name_must_not_be_blank"),
        sa.CheckConstraint("context_length BETWEEN 1 AND 100000000", name="context_length_must_be_positive"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", name="base_model_name_is_taken"),
        schema="loracomp",
        comment="Frozen causal language models that adapters belong to.",
    )
    op.create_index(
        "one_default_base_model",
        "base_model",
        ["is_default"],
        unique=True,
        schema="loracomp",
        postgresql_where=sa.text("is_default"),
    )
    op.create_table(
        "encoder",
        sa.Column(
            "id",
            sa.SmallInteger(),
            server_default=sa.text("1"),
            autoincrement=False,
            nullable=False,
            comment="Always 1: a database has one encoder.",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="What people call it."),
        sa.Column("source", sa.Text(), nullable=False, comment="Hub id, folder, or package:NAME that carries one."),
        sa.Column("revision", sa.Text(), nullable=True, comment="Revision at the hub; null where the source has none."),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="Sha256 of the weight files as they came."),
        sa.Column("dimensions", sa.Integer(), nullable=False, comment="Length of its vectors."),
        sa.Column(
            "input_version",
            sa.SmallInteger(),
            server_default=sa.text("1"),
            nullable=False,
            comment="What it is shown. 1: prompt, then a newline and the choices joined by ' | '. 2: prompt and choices apart, each half of the vector. 3: the same, and how long and how many they are.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.CheckConstraint("dimensions BETWEEN 1 AND 2000", name="dimensions_must_be_indexable"),
        sa.CheckConstraint("id = 1", name="a_database_has_one_encoder"),
        sa.PrimaryKeyConstraint("id"),
        schema="loracomp",
        comment="The frozen sentence encoder that examples and jobs are embedded with.",
    )
    op.create_table(
        "task",
        sa.Column(
            "id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="Number inside; people use the name."
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="What people call it, such as piqa."),
        sa.Column(
            "family",
            sa.Text(),
            server_default=sa.text("'other'"),
            nullable=False,
            comment="Kind of task, such as commonsense or nli; for reports.",
        ),
        sa.Column(
            "description",
            sa.Text(),
            server_default=sa.text("''"),
            nullable=False,
            comment="What the task asks for, in a sentence.",
        ),
        sa.Column(
            "reader_role",
            RoleName(),
            nullable=True,
            comment="Role whose members' jobs may retrieve it; null is everybody.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.CheckConstraint("NOT loracomp.is_blank(name)", name="task_name_must_not_be_blank"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", name="task_name_is_taken"),
        schema="loracomp",
        comment="Named skills with training examples.",
    )
    op.create_table(
        "example",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="Number inside."),
        sa.Column("task_id", sa.Integer(), nullable=False, comment="The task it is an example of."),
        sa.Column("split", sa.Text(), nullable=False, comment="train: may be retrieved. validation, test: never."),
        sa.Column(
            "prompt",
            sa.Text(),
            nullable=True,
            comment="Text shown to the model; null where a library ships the example without its text.",
        ),
        sa.Column(
            "choices",
            sa.ARRAY(sa.Text()),
            nullable=True,
            comment="Possible answers; null where the answer is free text.",
        ),
        sa.Column(
            "answer", sa.Text(), nullable=True, comment="The right answer; one of the choices where there are any."
        ),
        sa.Column("source_ref", sa.Text(), nullable=True, comment="Where the row came from, such as piqa/train#1532."),
        sa.Column(
            "content_hash", sa.LargeBinary(), nullable=False, comment="Sha256 of the raw fields as canonical JSON."
        ),
        sa.Column(
            "hash_version",
            sa.SmallInteger(),
            server_default=sa.text("1"),
            nullable=False,
            comment="How content_hash was computed.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.CheckConstraint("split IN ('train', 'validation', 'test')", name="split_must_be_train_validation_or_test"),
        sa.CheckConstraint(
            "choices IS NULL OR answer IS NULL OR answer = ANY (choices)", name="answer_must_be_one_of_the_choices"
        ),
        sa.CheckConstraint("octet_length(content_hash) = 32", name="content_hash_must_be_a_sha256"),
        sa.CheckConstraint(
            "prompt IS NOT NULL OR source_ref IS NOT NULL", name="an_example_needs_a_prompt_or_a_source_ref"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["loracomp.task.id"], name="example_task_must_exist", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("id", "task_id", name="example_with_its_task"),
        sa.UniqueConstraint("task_id", "content_hash", name="a_row_stands_in_one_split_of_its_task_once"),
        schema="loracomp",
        comment="Examples of tasks, by split. Text may be absent: a library ships embeddings and references.",
    )
    op.create_table(
        "example_embedding",
        sa.Column("example_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The example."),
        sa.Column(
            "task_id", sa.Integer(), nullable=False, comment="Its task, here again so that retrieval reads one table."
        ),
        sa.Column(
            "embedding",
            Vector(dim=832),
            nullable=False,
            comment="Unit vector of the example's text in the encoder's input format.",
        ),
        sa.ForeignKeyConstraint(
            ["example_id", "task_id"],
            ["loracomp.example.id", "loracomp.example.task_id"],
            name="embedding_belongs_to_an_example_of_its_task",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("example_id", name="an_example_has_one_embedding"),
        schema="loracomp",
        comment="Embeddings of train examples, narrow and apart: what retrieval scans.",
    )
    op.create_index(
        "example_embedding_hnsw",
        "example_embedding",
        ["embedding"],
        unique=False,
        schema="loracomp",
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "vector_cosine_ops"},
        postgresql_with={"ef_construction": 400},
    )
    op.create_index("example_embedding_task", "example_embedding", ["task_id"], unique=False, schema="loracomp")
    op.create_table(
        "adapter",
        sa.Column(
            "id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="Number inside; traces name it."
        ),
        sa.Column("task_id", sa.Integer(), nullable=False, comment="The task it was trained for."),
        sa.Column("base_model_id", sa.Integer(), nullable=False, comment="The base model it belongs to."),
        sa.Column("name", sa.Text(), nullable=False, comment="What people call it; the task's name unless given."),
        sa.Column("version", sa.Integer(), nullable=False, comment="1, 2, ... by name and base model."),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'staged'"),
            nullable=False,
            comment="staged: checked, not used. active: composed into jobs. retired: kept for replay.",
        ),
        sa.Column("rank", sa.Integer(), nullable=False, comment="r of the factors."),
        sa.Column("alpha", sa.Double(), nullable=False, comment="lora_alpha."),
        sa.Column(
            "use_rslora", sa.Boolean(), nullable=False, comment="Whether scaling is alpha/sqrt(r) instead of alpha/r."
        ),
        sa.Column("scaling", sa.Double(), nullable=False, comment="Factor on B A: alpha/r, or alpha/sqrt(r)."),
        sa.Column(
            "target_modules",
            sa.ARRAY(sa.Text()),
            nullable=False,
            comment="Modules of the base model that it changes, by full name.",
        ),
        sa.Column("parameter_count", sa.BigInteger(), nullable=False, comment="Numbers in its factors."),
        sa.Column("byte_count", sa.BigInteger(), nullable=False, comment="Length of its safetensors file."),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Of its safetensors file; checked on every load."),
        sa.Column(
            "config",
            postgresql.JSONB(),
            nullable=False,
            comment="Its adapter_config.json, for export.",
        ),
        sa.Column(
            "training",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="How it was trained: data digest, hyper-parameters, rows, seed; {} where unknown.",
        ),
        sa.Column(
            "created_by",
            RoleName(),
            server_default=sa.text("current_user"),
            nullable=False,
            comment="Who registered it.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column("activated_at", sa.DateTime(timezone=True), nullable=True, comment="When it last became active."),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True, comment="When it was retired."),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="adapter_sha256_must_be_a_sha256"),
        sa.CheckConstraint(
            "status IN ('staged', 'active', 'retired')", name="adapter_status_must_be_staged_active_or_retired"
        ),
        sa.CheckConstraint("NOT loracomp.is_blank(name)", name="adapter_name_must_not_be_blank"),
        sa.CheckConstraint("alpha BETWEEN 1e-6 AND 1e6", name="alpha_must_be_positive_and_finite"),
        sa.CheckConstraint("cardinality(target_modules) > 0", name="an_adapter_must_target_a_module"),
        sa.CheckConstraint("rank BETWEEN 1 AND 65536", name="rank_must_be_positive"),
        sa.CheckConstraint("scaling BETWEEN 1e-9 AND 1e6", name="scaling_must_be_positive_and_finite"),
        sa.CheckConstraint("version >= 1", name="adapter_version_must_be_positive"),
        sa.ForeignKeyConstraint(["base_model_id"], ["loracomp.base_model.id"], name="adapter_base_model_must_exist"),
        sa.ForeignKeyConstraint(["task_id"], ["loracomp.task.id"], name="adapter_task_must_exist"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("base_model_id", "name", "version", name="adapter_version_is_taken"),
        schema="loracomp",
        comment="LoRA adapters: one task, one base model, versions. The weights are in adapter_part.",
    )
    op.create_index(
        "one_active_adapter_a_task_and_base_model",
        "adapter",
        ["task_id", "base_model_id"],
        unique=True,
        schema="loracomp",
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_table(
        "adapter_part",
        sa.Column("adapter_id", sa.Integer(), autoincrement=False, nullable=False, comment="The adapter."),
        sa.Column(
            "part", sa.Integer(), autoincrement=False, nullable=False, comment="0, 1, ...: parts of 8 MB, in order."
        ),
        sa.Column("bytes", sa.LargeBinary(), nullable=False, comment="This part of the safetensors file."),
        sa.CheckConstraint("octet_length(bytes) BETWEEN 1 AND 8388608", name="a_part_holds_at_most_8_mb"),
        sa.CheckConstraint("part >= 0", name="part_must_not_be_negative"),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["loracomp.adapter.id"], name="weights_belong_to_an_adapter", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", "part", name="adapter_part_stands_once"),
        schema="loracomp",
        comment="Safetensors files of adapters, in parts.",
    )
    op.create_table(
        "policy",
        sa.Column(
            "name", sa.Text(), nullable=False, comment="What jobs call it; 'default' is what jobs that name none use."
        ),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False, comment="What it is for."),
        sa.Column(
            "router",
            sa.Text(),
            server_default=sa.text("'retrieval'"),
            nullable=False,
            comment="retrieval; or a control: own_task, random, random_parameters, base.",
        ),
        sa.Column("k", sa.Integer(), server_default=sa.text("30"), nullable=False, comment="Examples to retrieve."),
        sa.Column(
            "temperature",
            sa.Double(),
            server_default=sa.text("0.1"),
            nullable=False,
            comment="Of the softmax over similarities.",
        ),
        sa.Column(
            "top_p",
            sa.Double(),
            server_default=sa.text("0.95"),
            nullable=False,
            comment="Mass that the nucleus must reach.",
        ),
        sa.Column(
            "max_adapters",
            sa.Integer(),
            server_default=sa.text("8"),
            nullable=False,
            comment="Adapters in a composition at most.",
        ),
        sa.Column(
            "min_similarity",
            sa.Double(),
            server_default=sa.text("0.0"),
            nullable=False,
            comment="Below it, nothing is composed and the base model answers.",
        ),
        sa.Column(
            "weighting",
            sa.Text(),
            server_default=sa.text("'similarity'"),
            nullable=False,
            comment="similarity: probabilities, renormalised over the kept. uniform: equal weights.",
        ),
        sa.Column(
            "strategy", sa.Text(), server_default=sa.text("'cat'"), nullable=False, comment="How adapters are merged."
        ),
        sa.Column(
            "density",
            sa.Double(),
            server_default=sa.text("0.5"),
            nullable=False,
            comment="Share of entries kept by ties, magnitude_prune and dare_*.",
        ),
        sa.Column(
            "seed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Of dare_* masks, random and random_parameters.",
        ),
        sa.Column(
            "choice_normalization",
            sa.Text(),
            server_default=sa.text("'tokens'"),
            nullable=False,
            comment="What a choice's summed log-likelihood is divided by: none, characters, tokens.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was last changed.",
        ),
        sa.Column(
            "contrast",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="This times the base model's log-likelihood of a choice is subtracted from the mix's; 0: the mix alone.",
        ),
        sa.Column(
            "min_share",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Tasks whose weight would be below this are left out, and the others share it; the first always stays.",
        ),
        sa.CheckConstraint(
            "choice_normalization IN ('none', 'characters', 'tokens')",
            name="choice_normalization_must_be_none_characters_or_tokens",
        ),
        sa.CheckConstraint(
            "router IN ('retrieval', 'own_task', 'random', 'random_parameters', 'base')",
            name="router_must_be_a_known_one",
        ),
        sa.CheckConstraint(
            "strategy IN ('linear', 'cat', 'ties', 'magnitude_prune', 'dare_linear', 'dare_ties')",
            name="strategy_must_be_a_known_one",
        ),
        sa.CheckConstraint("weighting IN ('similarity', 'uniform')", name="weighting_must_be_similarity_or_uniform"),
        sa.CheckConstraint("NOT loracomp.is_blank(name)", name="policy_name_must_not_be_blank"),
        sa.CheckConstraint("contrast BETWEEN 0 AND 1", name="contrast_must_be_between_0_and_1"),
        sa.CheckConstraint("density BETWEEN 0.0001 AND 1", name="density_must_be_between_0_0001_and_1"),
        sa.CheckConstraint("k BETWEEN 1 AND 200", name="k_must_be_between_1_and_200"),
        sa.CheckConstraint("max_adapters BETWEEN 1 AND 64", name="max_adapters_must_be_between_1_and_64"),
        sa.CheckConstraint("min_share BETWEEN 0 AND 1", name="min_share_must_be_between_0_and_1"),
        sa.CheckConstraint("min_similarity BETWEEN -1 AND 1", name="min_similarity_must_be_between_minus_1_and_1"),
        sa.CheckConstraint("seed >= 0", name="seed_must_not_be_negative"),
        sa.CheckConstraint("temperature BETWEEN 0.0001 AND 100", name="temperature_must_be_between_0_0001_and_100"),
        sa.CheckConstraint("top_p BETWEEN 0.0001 AND 1", name="top_p_must_be_between_0_0001_and_1"),
        sa.PrimaryKeyConstraint("name"),
        schema="loracomp",
        comment="Named settings of routing and merging. Jobs name one; traces keep the settings as they were.",
    )
    op.create_table(
        "evaluation",
        sa.Column("name", sa.Text(), nullable=False, comment="What people call it."),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False, comment="What it measures."),
        sa.Column(
            "split",
            sa.Text(),
            nullable=True,
            comment="Split whose rows it asks; null where its jobs were inserted by hand.",
        ),
        sa.Column(
            "kind",
            sa.Text(),
            server_default=sa.text("'predict'"),
            nullable=False,
            comment="predict: answers are compared. route: weights alone.",
        ),
        sa.Column(
            "base_model",
            sa.Text(),
            nullable=True,
            comment="Base model that it asks; null where its jobs were inserted by hand.",
        ),
        sa.Column(
            "exclude_own",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether each row's own task is kept out of its mix.",
        ),
        sa.Column(
            "seed",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Of the order in which rows are drawn.",
        ),
        sa.Column(
            "created_by", RoleName(), server_default=sa.text("current_user"), nullable=False, comment="Who started it."
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.CheckConstraint("kind IN ('predict', 'route')", name="evaluation_kind_must_be_predict_or_route"),
        sa.CheckConstraint(
            "split IN ('train', 'validation', 'test')", name="evaluated_split_must_be_train_validation_or_test"
        ),
        sa.CheckConstraint("NOT loracomp.is_blank(name)", name="evaluation_name_must_not_be_blank"),
        sa.ForeignKeyConstraint(
            ["base_model"], ["loracomp.base_model.name"], name="evaluation_base_model_must_exist", onupdate="CASCADE"
        ),
        sa.PrimaryKeyConstraint("name"),
        schema="loracomp",
        comment="Named sets of jobs whose expected answers are known.",
    )
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="The job's number."),
        sa.Column(
            "status",
            sa.Text(),
            server_default=sa.text("'queued'"),
            nullable=False,
            comment="queued, running, succeeded, failed or cancelled. Only functions change it.",
        ),
        sa.Column(
            "kind",
            sa.Text(),
            server_default=sa.text("'predict'"),
            nullable=False,
            comment="predict: an answer. route: the weights alone.",
        ),
        sa.Column("prompt", sa.Text(), nullable=False, comment="The text. All that an INSERT must name."),
        sa.Column(
            "choices", sa.ARRAY(sa.Text()), nullable=True, comment="Possible answers to score; null to generate."
        ),
        sa.Column(
            "max_new_tokens",
            sa.Integer(),
            nullable=True,
            comment="Tokens to generate at most; filled with 64 where there are no choices.",
        ),
        sa.Column(
            "stop",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Texts that end a generation; not part of the answer.",
        ),
        sa.Column(
            "policy",
            sa.Text(),
            server_default=sa.text("'default'"),
            nullable=False,
            comment="Settings of routing and merging.",
        ),
        sa.Column("base_model", sa.Text(), nullable=True, comment="Filled with the default base model."),
        sa.Column(
            "priority",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="0 to 1000; one step is worth a minute of waiting.",
        ),
        sa.Column(
            "run_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="Not before this time.",
        ),
        sa.Column(
            "idempotency_key",
            sa.Text(),
            nullable=True,
            comment="Yours; the same key twice is refused, or with submit_job one job.",
        ),
        sa.Column(
            "tags",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Yours, to filter by; not shown to the model.",
        ),
        sa.Column(
            "exclude_tasks",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Tasks whose examples and adapters must not be used.",
        ),
        sa.Column(
            "max_attempts",
            sa.Integer(),
            server_default=sa.text("3"),
            nullable=False,
            comment="Attempts before the job ends failed.",
        ),
        sa.Column(
            "timeout_s",
            sa.Integer(),
            server_default=sa.text("600"),
            nullable=False,
            comment="Seconds a worker may hold it in one attempt.",
        ),
        sa.Column("task", sa.Text(), nullable=True, comment="Task that it comes from; evaluations only."),
        sa.Column("expected", sa.Text(), nullable=True, comment="The right answer; evaluations only."),
        sa.Column("evaluation", sa.Text(), nullable=True, comment="Evaluation that it belongs to."),
        sa.Column(
            "example_id",
            sa.BigInteger(),
            nullable=True,
            comment="Example that it asks; evaluations only, the same row under each policy.",
        ),
        sa.Column(
            "submitted_by",
            RoleName(),
            server_default=sa.text("current_user"),
            nullable=False,
            comment="Who inserted it; decides which tasks it may retrieve.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column(
            "due",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="run_at less priority x 60 s, and 1000 minutes later in evaluations: the order of claims. Filled by a trigger.",
        ),
        sa.Column(
            "attempts",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Claims so far, minus those given back.",
        ),
        sa.Column(
            "expired_leases",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Leases that ran out. Above 0, the job is claimed alone.",
        ),
        sa.Column("worker", sa.Text(), nullable=True, comment="Worker that holds it, or held it last."),
        sa.Column(
            "claimed_together",
            sa.Integer(),
            nullable=True,
            comment="Jobs in the claim that it was part of; an expiry counts where it is 1.",
        ),
        sa.Column(
            "lease_token",
            sa.BigInteger(),
            nullable=True,
            comment="Fence of the current lease; every later write must show it.",
        ),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True, comment="When the current attempt began."),
        sa.Column(
            "lease_expires_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the lease ends unless renewed; never later than the timeout allows.",
        ),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it succeeded, failed or was cancelled.",
        ),
        sa.Column("error_code", sa.Text(), nullable=True, comment="Short name of the last error."),
        sa.Column("error", sa.Text(), nullable=True, comment="The last error, in words."),
        sa.Column(
            "temperature",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Of generated text. 0: the most likely token each time; else drawn by softmax(logits / temperature).",
        ),
        sa.Column(
            "top_p",
            sa.Double(),
            server_default=sa.text("1"),
            nullable=False,
            comment="Of generated text: drawn from the fewest tokens whose probability reaches this.",
        ),
        sa.Column(
            "seed", sa.BigInteger(), nullable=True, comment="Of generated text that is drawn; null: the job's number."
        ),
        sa.Column(
            "scheduled",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether it waits for run_at; a claim ends that once the time has come. Filled by a trigger.",
        ),
        sa.Column(
            "is_correct",
            sa.Boolean(),
            nullable=True,
            comment="Whether the answer is the expected one; null where none is known.",
        ),
        sa.CheckConstraint(
            "(status = 'running') = (num_nulls(lease_token, lease_expires_at, claimed_at) = 0)",
            name="a_running_job_and_only_it_has_a_lease",
        ),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="an_ended_job_and_only_it_has_finished_at",
        ),
        sa.CheckConstraint(
            "array_position(stop, NULL) IS NULL AND array_position(stop, '') IS NULL AND cardinality(stop) <= 16",
            name="stop_must_hold_at_most_16_texts_none_empty",
        ),
        sa.CheckConstraint(
            "exclude_tasks = '{}' OR loracomp.texts_length(exclude_tasks) <= 100000",
            name="exclude_tasks_must_be_at_most_100000_characters_together",
        ),
        sa.CheckConstraint(
            "idempotency_key <> '' AND char_length(idempotency_key) <= 500",
            name="idempotency_key_must_be_1_to_500_characters",
        ),
        sa.CheckConstraint("jsonb_typeof(tags) = 'object'", name="tags_must_be_a_json_object"),
        sa.CheckConstraint("kind IN ('predict', 'route')", name="kind_must_be_predict_or_route"),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="status_must_be_a_known_one"
        ),
        sa.CheckConstraint(
            "stop = '{}' OR loracomp.texts_length(stop) <= 10000", name="stop_must_be_at_most_10000_characters_together"
        ),
        sa.CheckConstraint(
            "tags = '{}' OR char_length(tags::text) <= 100000", name="tags_must_be_at_most_100000_characters"
        ),
        sa.CheckConstraint("NOT loracomp.is_blank(prompt)", name="prompt_must_not_be_blank"),
        sa.CheckConstraint("array_position(exclude_tasks, NULL) IS NULL", name="exclude_tasks_must_not_hold_null"),
        sa.CheckConstraint("attempts >= 0", name="attempts_must_not_be_negative"),
        sa.CheckConstraint("char_length(prompt) <= 1000000", name="prompt_must_be_at_most_1000000_characters"),
        sa.CheckConstraint(
            "choices IS NULL OR (array_ndims(choices) = 1 AND array_lower(choices, 1) = 1 AND cardinality(choices) BETWEEN 2 AND 1000)",
            name="choices_must_be_a_list_of_2_to_1000",
        ),
        sa.CheckConstraint(
            "choices IS NULL OR (temperature = 0 AND top_p = 1 AND seed IS NULL)",
            name="choices_are_scored_not_drawn_leave_out_temperature_top_p_seed",
        ),
        sa.CheckConstraint("choices IS NULL OR loracomp.texts_are_distinct(choices)", name="choices_must_be_distinct"),
        sa.CheckConstraint(
            "choices IS NULL OR loracomp.texts_are_not_blank(choices)", name="choices_must_not_be_null_or_blank"
        ),
        sa.CheckConstraint(
            "choices IS NULL OR loracomp.texts_length(choices) <= 1000000",
            name="choices_must_be_at_most_1000000_characters_together",
        ),
        sa.CheckConstraint("choices IS NULL OR max_new_tokens IS NULL", name="give_choices_or_max_new_tokens_not_both"),
        sa.CheckConstraint(
            "example_id IS NULL OR evaluation IS NOT NULL", name="example_id_must_stand_with_an_evaluation"
        ),
        sa.CheckConstraint(
            "expected IS NULL OR choices IS NULL OR expected = ANY (choices)",
            name="expected_must_be_one_of_the_choices",
        ),
        sa.CheckConstraint("expired_leases >= 0", name="expired_leases_must_not_be_negative"),
        sa.CheckConstraint("isfinite(run_at)", name="run_at_must_be_finite"),
        sa.CheckConstraint("max_attempts BETWEEN 1 AND 100", name="max_attempts_must_be_between_1_and_100"),
        sa.CheckConstraint("max_new_tokens BETWEEN 1 AND 100000", name="max_new_tokens_must_be_between_1_and_100000"),
        sa.CheckConstraint("priority BETWEEN 0 AND 1000", name="priority_must_be_between_0_and_1000"),
        sa.CheckConstraint("seed >= 0", name="seed_must_not_be_negative"),
        sa.CheckConstraint("temperature BETWEEN 0 AND 100", name="temperature_must_be_between_0_and_100"),
        sa.CheckConstraint("timeout_s BETWEEN 1 AND 86400", name="timeout_s_must_be_between_1_and_86400"),
        sa.CheckConstraint("top_p BETWEEN 0.0001 AND 1", name="top_p_must_be_between_0_0001_and_1"),
        sa.ForeignKeyConstraint(
            ["base_model"], ["loracomp.base_model.name"], name="base_model_must_exist", onupdate="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["evaluation"], ["loracomp.evaluation.name"], name="evaluation_must_exist", onupdate="CASCADE"
        ),
        sa.ForeignKeyConstraint(["policy"], ["loracomp.policy.name"], name="policy_must_exist", onupdate="CASCADE"),
        sa.ForeignKeyConstraint(
            ["task"], ["loracomp.task.name"], name="task_must_exist", onupdate="CASCADE", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("submitted_by", "idempotency_key", name="idempotency_key_was_used_before"),
        schema="loracomp",
        comment="Requests for predictions. INSERT a prompt; read loracomp.job_result.",
        postgresql_with={
            "fillfactor": "80",
            "autovacuum_analyze_scale_factor": "0.05",
            "autovacuum_vacuum_scale_factor": "0.005",
            "autovacuum_vacuum_threshold": "1000",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    op.create_index(
        "an_evaluation_asks_an_example_once_a_policy",
        "job",
        ["evaluation", "example_id", "policy"],
        unique=True,
        schema="loracomp",
        postgresql_where=sa.text("example_id IS NOT NULL"),
    )
    op.create_index(
        "job_evaluation",
        "job",
        ["evaluation"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("evaluation IS NOT NULL"),
    )
    op.create_index(
        "job_finished",
        "job",
        ["finished_at"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "job_leases",
        "job",
        ["lease_expires_at"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index(
        "job_queue",
        "job",
        ["base_model", "submitted_by", "due", "id"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("status = 'queued' AND NOT scheduled"),
    )
    op.create_index(
        "job_queue_of_evaluations",
        "job",
        ["base_model", "due", "id"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("status = 'queued' AND evaluation IS NOT NULL AND NOT scheduled"),
    )
    op.create_index(
        "job_scheduled",
        "job",
        ["run_at"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("status = 'queued' AND scheduled"),
    )
    op.create_table(
        "turn",
        sa.Column("base_model", sa.Text(), nullable=False, comment="Base model of the jobs."),
        sa.Column("submitted_by", RoleName(), nullable=False, comment="Who submitted them."),
        sa.Column(
            "served_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When a claim last took the first of its jobs.",
        ),
        sa.ForeignKeyConstraint(
            ["base_model"],
            ["loracomp.base_model.name"],
            name="turn_base_model_must_exist",
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("base_model", "submitted_by", name="a_submitter_has_one_turn_a_base_model"),
        schema="loracomp",
        comment="When each submitter was last served: claims take turns.",
        postgresql_with={"fillfactor": "20", "autovacuum_vacuum_cost_delay": "0"},
    )
    op.create_table(
        "queue_limit",
        sa.Column(
            "id",
            sa.SmallInteger(),
            server_default=sa.text("1"),
            autoincrement=False,
            nullable=False,
            comment="Always 1.",
        ),
        sa.Column(
            "in_all",
            sa.BigInteger(),
            nullable=True,
            comment="Jobs that may wait, those of evaluations apart; null: any number.",
        ),
        sa.Column(
            "per_submitter",
            sa.BigInteger(),
            nullable=True,
            comment="Jobs of one submitter that may wait; null: any number.",
        ),
        sa.CheckConstraint("id = 1", name="there_is_one_row_of_queue_limits"),
        sa.CheckConstraint("in_all BETWEEN 1 AND 1000000000", name="in_all_must_be_between_1_and_1000000000"),
        sa.CheckConstraint(
            "per_submitter BETWEEN 1 AND 1000000000", name="per_submitter_must_be_between_1_and_1000000000"
        ),
        sa.PrimaryKeyConstraint("id"),
        schema="loracomp",
        comment="How many jobs may wait. set_queue_limits sets it; administrators' own jobs are not bound.",
    )
    op.create_table(
        "queue_count",
        sa.Column("submitted_by", RoleName(), nullable=False, comment="Submitter; the empty name: all of them."),
        sa.Column("queued", sa.BigInteger(), nullable=False, comment="Jobs that waited when they were counted."),
        sa.Column(
            "last_id", sa.BigInteger(), nullable=False, comment="Newest job then: what came later has a higher id."
        ),
        sa.Column(
            "counted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="When that was.",
        ),
        sa.PrimaryKeyConstraint("submitted_by"),
        schema="loracomp",
        comment="What limits compare with, so that the queue is not counted with each INSERT.",
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "worker",
        sa.Column("name", sa.Text(), nullable=False, comment="Name that leases and predictions carry."),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="idle, busy, stopping or stopped, as it said last; worker_status knows who is gone.",
        ),
        sa.Column("host", sa.Text(), nullable=False, comment="Machine that it runs on."),
        sa.Column("pid", sa.Integer(), nullable=False, comment="Its process there."),
        sa.Column("code_version", sa.Text(), nullable=False, comment="Version of loracomp that it runs."),
        sa.Column("base_model", sa.Text(), nullable=False, comment="Base model that it serves."),
        sa.Column("device", sa.Text(), nullable=False, comment="Device and number type, such as cpu/bfloat16."),
        sa.Column(
            "login",
            RoleName(),
            server_default=sa.text("session_user"),
            nullable=False,
            comment="Role that it logged in as.",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it began, by the database's clock.",
        ),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it last reported.",
        ),
        sa.Column(
            "looked_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it last asked for jobs; null where never.",
        ),
        sa.Column(
            "silent_after_s",
            sa.Double(),
            nullable=False,
            comment="Seconds without a report after which it counts as gone.",
        ),
        sa.Column(
            "claimed",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Jobs that it has claimed since it began.",
        ),
        sa.Column(
            "succeeded",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Jobs that it has answered.",
        ),
        sa.Column(
            "failed",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Failures that it has written, those that are tried again included.",
        ),
        sa.Column(
            "released",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Jobs that it has given back uncharged.",
        ),
        sa.Column(
            "dropped",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Results that came after their lease was lost.",
        ),
        sa.CheckConstraint(
            "status IN ('idle', 'busy', 'stopping', 'stopped')", name="worker_status_must_be_a_known_one"
        ),
        sa.CheckConstraint("silent_after_s BETWEEN 0 AND 86400", name="silent_after_s_must_be_between_0_and_86400"),
        sa.PrimaryKeyConstraint("name"),
        schema="loracomp",
        comment="Workers as they last reported: who is alive, doing what.",
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "prediction",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The job it answers."),
        sa.Column("output", sa.Text(), nullable=True, comment="The answer; null for a job of kind route."),
        sa.Column("choice_index", sa.Integer(), nullable=True, comment="1-based: choices[choice_index] is the output."),
        sa.Column(
            "choice_scores",
            sa.ARRAY(sa.Double()),
            nullable=True,
            comment="Log-likelihood of each choice in nats, normalised as the policy says.",
        ),
        sa.Column(
            "query_embedding", HALFVEC(), nullable=True, comment="The job's unit vector, for other settings later."
        ),
        sa.Column(
            "example_ids",
            sa.ARRAY(sa.BigInteger()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Retrieved examples, nearest first.",
        ),
        sa.Column(
            "example_tasks", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment="Their tasks."
        ),
        sa.Column(
            "similarities",
            sa.ARRAY(sa.Double()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Their cosine similarities.",
        ),
        sa.Column(
            "tasks",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Tasks by falling probability.",
        ),
        sa.Column(
            "probabilities",
            sa.ARRAY(sa.Double()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="P(task) of each.",
        ),
        sa.Column(
            "weights",
            sa.ARRAY(sa.Double()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Weight of each in the composition; 0 outside the nucleus.",
        ),
        sa.Column(
            "composed_tasks",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Tasks whose adapters were composed.",
        ),
        sa.Column(
            "adapter_ids",
            sa.ARRAY(sa.Integer()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Their adapters.",
        ),
        sa.Column(
            "adapter_sha256",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Hashes of the adapters' files.",
        ),
        sa.Column(
            "adapter_weights",
            sa.ARRAY(sa.Double()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Weight of each composed adapter.",
        ),
        sa.Column(
            "policy_settings",
            postgresql.JSONB(),
            nullable=False,
            comment="The policy's settings as they were, with its name.",
        ),
        sa.Column(
            "fallback",
            sa.Text(),
            nullable=True,
            comment="Why the base model answered alone; null where adapters were composed.",
        ),
        sa.Column(
            "composition_digest",
            sa.Text(),
            nullable=True,
            comment="Sha256 of what decides the result: base model, adapters, their scalings and weights, strategy, density, seed.",
        ),
        sa.Column(
            "norm_ratio",
            sa.Double(),
            nullable=True,
            comment="Norm of the composed change over that of the exact weighted sum; null for the base model alone.",
        ),
        sa.Column(
            "cosine",
            sa.Double(),
            nullable=True,
            comment="Cosine between the composed change and the exact weighted sum; null for the base model alone.",
        ),
        sa.Column(
            "prompt_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="Tokens of the prompt."
        ),
        sa.Column(
            "output_tokens",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Tokens scored or generated.",
        ),
        sa.Column(
            "timings",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Milliseconds of each step for the batch that it was part of.",
        ),
        sa.Column(
            "batch_size", sa.Integer(), server_default=sa.text("1"), nullable=False, comment="Jobs in that batch."
        ),
        sa.Column("worker", sa.Text(), nullable=True, comment="Worker that answered."),
        sa.Column("device", sa.Text(), nullable=True, comment="Device and number type, such as cpu/bfloat16."),
        sa.Column(
            "attempt", sa.Integer(), server_default=sa.text("1"), nullable=False, comment="Attempt that succeeded."
        ),
        sa.Column("base_model", sa.Text(), nullable=False, comment="Name of the base model."),
        sa.Column("base_fingerprint", sa.Text(), nullable=False, comment="Its fingerprint."),
        sa.Column(
            "encoder",
            sa.Text(),
            nullable=False,
            comment="Name of the encoder and its input version, such as all-MiniLM-L6-v2/1.",
        ),
        sa.Column("code_version", sa.Text(), nullable=False, comment="Version of loracomp that answered."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.Column("submitted_by", sa.Text(), nullable=False, comment="Who submitted the job, and so may see this row."),
        sa.Column(
            "eligible_task_count",
            sa.Integer(),
            nullable=True,
            comment="Tasks that the job might have retrieved; null in traces older than the column.",
        ),
        sa.CheckConstraint(
            "-0.001 <= ALL (adapter_weights) AND 1.001 >= ALL (adapter_weights)",
            name="adapter_weights_must_be_between_0_and_1",
        ),
        sa.CheckConstraint(
            "-0.001 <= ALL (probabilities) AND 1.001 >= ALL (probabilities)",
            name="probabilities_must_be_between_0_and_1",
        ),
        sa.CheckConstraint(
            "-0.001 <= ALL (weights) AND 1.001 >= ALL (weights)", name="weights_must_be_between_0_and_1"
        ),
        sa.CheckConstraint(
            "-2 <= ALL (similarities) AND 2 >= ALL (similarities)", name="similarities_must_be_between_minus_2_and_2"
        ),
        sa.CheckConstraint("batch_size BETWEEN 1 AND 1000000", name="batch_size_must_be_positive"),
        sa.CheckConstraint(
            "jsonb_typeof(policy_settings) = 'object' AND NOT jsonb_path_exists(policy_settings, "
            """'$ ? (@.k.type() <> "number" || @.k < -1000000 || @.k > 1000000 """
            """|| @.temperature.type() <> "number" || @.temperature < -1000000 || @.temperature > 1000000 """
            """|| @.top_p.type() <> "number" || @.top_p < -1000000 || @.top_p > 1000000 """
            """|| @.max_adapters.type() <> "number" || @.max_adapters < -1000000 || @.max_adapters > 1000000 """
            """|| @.density.type() <> "number" || @.density < -1000000 || @.density > 1000000)')""",
            name="policy_settings_must_hold_numbers_where_policies_do",
        ),
        sa.CheckConstraint(
            "jsonb_typeof(timings) = 'object' AND NOT jsonb_path_exists(timings, 'strict $.* ? (@.type() <> \"number\" || @ < -1000000000000 || @ > 1000000000000)')",
            name="timings_must_be_numbers_by_step",
        ),
        sa.CheckConstraint("prompt_tokens >= 0 AND output_tokens >= 0", name="tokens_must_not_be_negative"),
        sa.ForeignKeyConstraint(["job_id"], ["loracomp.job.id"], name="a_prediction_answers_a_job", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id"),
        schema="loracomp",
        comment="Answers, each with its whole trace in arrays; views unnest them.",
        postgresql_with={"toast_tuple_target": "4080"},
    )
    op.create_index(
        "prediction_day",
        "prediction",
        [sa.literal_column("((created_at AT TIME ZONE 'UTC')::date)")],
        unique=False,
        schema="loracomp",
        postgresql_using="brin",
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="Order of events."),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="When.",
        ),
        sa.Column(
            "actor", RoleName(), server_default=sa.text("session_user"), nullable=False, comment="Role that did it."
        ),
        sa.Column("entity", sa.Text(), nullable=False, comment="Table that changed, such as job or policy."),
        sa.Column("entity_id", sa.BigInteger(), nullable=True, comment="Number of the row, where it has one."),
        sa.Column("entity_name", sa.Text(), nullable=True, comment="Name of the row, where it has one."),
        sa.Column("action", sa.Text(), nullable=False, comment="insert, update or delete."),
        sa.Column("old_status", sa.Text(), nullable=True, comment="Status before, for jobs and adapters."),
        sa.Column("new_status", sa.Text(), nullable=True, comment="Status after, for jobs and adapters."),
        sa.Column("attempt", sa.Integer(), nullable=True, comment="The job's attempts after the change."),
        sa.Column("worker", sa.Text(), nullable=True, comment="Worker that did it."),
        sa.Column("reason", sa.Text(), nullable=True, comment="Error code or the operator's reason."),
        sa.Column("before", postgresql.JSONB(), nullable=True, comment="The row before; never a prompt."),
        sa.Column("after", postgresql.JSONB(), nullable=True, comment="The row after; never a prompt."),
        sa.Column(
            "login",
            RoleName(),
            server_default=sa.text(
                "NULLIF(SESSION_USER, COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER))"
            ),
            nullable=True,
            comment="Login behind it, where actor is a role that the session had set; null where they are the same.",
        ),
        sa.CheckConstraint("action IN ('insert', 'update', 'delete')", name="action_must_be_insert_update_or_delete"),
        sa.PrimaryKeyConstraint("id"),
        schema="loracomp",
        comment="Who changed what, when: written by triggers, appended only.",
    )
    op.create_index(
        "audit_event_by_entity",
        "audit_event",
        ["entity", "at"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("entity <> 'job'"),
    )
    op.create_index(
        "audit_event_of_job",
        "audit_event",
        ["entity_id"],
        unique=False,
        schema="loracomp",
        postgresql_where=sa.text("entity = 'job'"),
    )
    op.create_table(
        "report_refresh",
        sa.Column("report", sa.Text(), nullable=False, comment="Materialized view of loracomp."),
        sa.Column(
            "refreshed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="Up to when it counts.",
        ),
        sa.Column(
            "seconds",
            sa.Double(),
            nullable=True,
            comment="Seconds that its last refresh took; null where there was none since it was made.",
        ),
        sa.PrimaryKeyConstraint("report"),
        schema="loracomp",
        comment="When the materialized views that reports rest on were last worked out.",
    )
    op.create_table(
        "sql_object",
        sa.Column("path", sa.Text(), nullable=False, comment="File under sql/."),
        sa.Column(
            "position", sa.Integer(), nullable=False, comment="Order in which it was applied; dropped in reverse."
        ),
        sa.Column("drops", sa.ARRAY(sa.Text()), nullable=False, comment="Statements that drop what the file made."),
        sa.Column("checksum", sa.Text(), nullable=False, comment="Sha256 of the file as applied."),
        sa.Column(
            "applied_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment="When."
        ),
        sa.PrimaryKeyConstraint("path"),
        schema="loracomp",
        comment="Which files of sql/ stand in this database, as they were applied.",
    )
    op.execute(TRACE)
    # Retrieval reads vectors where they stand, not from a TOAST table.
    op.execute("ALTER TABLE loracomp.example_embedding ALTER COLUMN embedding SET STORAGE PLAIN")
    for table, columns in NOT_COMPRESSED.items():
        for column in columns:
            op.execute(f"ALTER TABLE loracomp.{table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
    for table, columns in NO_STATISTICS.items():
        for column in columns:
            op.execute(f"ALTER TABLE loracomp.{table} ALTER COLUMN {column} SET STATISTICS 0")
    op.execute(STATISTICS)
    op.execute(POLICIES)
    op.execute(LIMITS)


TABLES = (
    "base_model",
    "encoder",
    "task",
    "example",
    "example_embedding",
    "adapter",
    "adapter_part",
    "policy",
    "evaluation",
    "job",
    "turn",
    "queue_limit",
    "queue_count",
    "worker",
    "prediction",
    "audit_event",
    "report_refresh",
    "sql_object",
)


def downgrade() -> None:
    op.execute("DROP TYPE loracomp.route_trace")
    for table in reversed(TABLES):
        op.drop_table(table, schema="loracomp")
    for sequence in ("rescued_jobs", "refused_inserts", "queue_full_until"):
        op.execute(f"DROP SEQUENCE loracomp.{sequence}")
    op.execute(
        "DROP FUNCTION loracomp.texts_are_not_blank(text[]), loracomp.texts_are_distinct(text[]), "
        "loracomp.texts_length(text[]), loracomp.is_blank(text), loracomp.white_space()"
    )
    op.execute("DROP SCHEMA bi")
