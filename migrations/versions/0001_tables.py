"""Creates the tables as `loracomp.database.tables` describes them, with what they stand on and the rows that they begin with.

Until 1.0 is released this is the only migration, and a change of a table is a change of that package. With the release it is
written out, so that it imports nothing that may change.
"""

from alembic import op
from sqlalchemy import create_mock_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.base import Executable

from loracomp.database.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Constraints call these, so they belong to the tables and not to sql/. plpgsql keeps its plans: with functions in language sql, each
# INSERT of a job took 0.1 ms more. White space: Unicode's, and the four separators that Python counts as such.
FUNCTIONS = r"""
CREATE FUNCTION loracomp.white_space() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
COMMENT ON FUNCTION loracomp.white_space IS
'White space as the inside of a regular expression''s brackets: the same on every server, where \s is not.';
CREATE FUNCTION loracomp.is_blank(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN value COLLATE pg_catalog."C" OPERATOR(pg_catalog.!~)
        ('[^' OPERATOR(pg_catalog.||) loracomp.white_space() OPERATOR(pg_catalog.||) ']');
END
$$;
COMMENT ON FUNCTION loracomp.is_blank IS 'Whether a text has nothing but white space; null for null.';
CREATE FUNCTION loracomp.texts_are_not_blank(texts text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM pg_catalog.unnest(texts) AS t (value) WHERE t.value IS NULL OR loracomp.is_blank(t.value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_are_not_blank IS 'Whether no text of the array is null or only white space.';
CREATE FUNCTION loracomp.texts_are_distinct(texts text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT pg_catalog.count(DISTINCT t.value) OPERATOR(pg_catalog.=) pg_catalog.count(t.value)
        FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_are_distinct IS 'Whether no text stands in the array twice.';
CREATE FUNCTION loracomp.texts_length(texts text[]) RETURNS bigint LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT coalesce(pg_catalog.sum(pg_catalog.char_length(t.value)), 0) FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_length IS 'Characters of all texts of the array together.';
"""

# No rollback undoes a sequence, so these count.
SEQUENCES = """
COMMENT ON SEQUENCE loracomp.rescued_jobs IS 'Counter: jobs taken back after their lease ran out.';
COMMENT ON SEQUENCE loracomp.refused_inserts IS
'Counter: INSERT statements refused because a limit of the queue was reached.';
COMMENT ON SEQUENCE loracomp.missed_hint IS 'The last transaction whose hints for declarations could not be written.';
-- A sequence's first nextval gives its start. From now on each counts one.
SELECT nextval('loracomp.rescued_jobs'), nextval('loracomp.refused_inserts');
"""

# Attributes are columns of loracomp.prediction, by name and type.
TRACE = """
CREATE TYPE loracomp.route_trace AS (
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
    eligible_task_count integer,
    expected_gains double precision[],
    chat_template boolean,
    calibration_examples bigint[]
);
COMMENT ON TYPE loracomp.route_trace IS
'What routing decided for a job: columns of loracomp.prediction, which holds it. Of workers'' own use.'
"""

# What a worker hands back for each job; the attributes are columns of loracomp.prediction, or of loracomp.measurement.
RESULTS = """
CREATE TYPE loracomp.answer AS (
    job_id bigint,
    lease_token bigint,
    output text,
    choice_index integer,
    choice_scores double precision[],
    choice_biases double precision[],
    label_scores double precision[],
    score_weights double precision[],
    prompt_tokens integer,
    output_tokens integer,
    finish_reason text,
    composition_digest text,
    batch_size integer,
    timings jsonb
);
COMMENT ON TYPE loracomp.answer IS 'What a worker answered to a job, with the token of its lease. For record_predictions.';
CREATE TYPE loracomp.measured AS (
    job_id bigint,
    lease_token bigint,
    choice_normalization text,
    base_score double precision,
    base_is_right boolean,
    chat_template boolean,
    adapter_ids integer[],
    gains real[],
    are_right boolean[]
);
COMMENT ON TYPE loracomp.measured IS
'What a worker measured for a job, with the token of its lease; the arrays have an element for each adapter. For record_measurements.'
"""

# How many predictions each router has: without it reports are planned for a half per cent of them.
STATISTICS = "CREATE STATISTICS loracomp.prediction_router ON (policy_settings ->> 'router') FROM loracomp.prediction"

# Those of the first million jobs, and of what belongs to no range; the SQL function add_range makes the others. Whole rows of
# prediction stay in their page. Row security without a policy keeps out all but the owner; who reads through a table is held to its
# policies alone.
PARTITIONS = (
    ("prediction", "prediction_0", "FOR VALUES FROM (0) TO (1000000)", "Answers to the jobs from 0 to 999999."),
    ("prediction", "prediction_others", "DEFAULT", "Answers to jobs that have no other partition; usually none."),
    ("audit_event", "audit_event_others", "DEFAULT", "Events of the registry."),
    ("audit_event", "audit_event_jobs", "FOR VALUES FROM ('job', 0) TO ('job', MAXVALUE)", "Events of jobs."),
    ("audit_event_jobs", "audit_event_0", "FOR VALUES FROM (0) TO (1000000)", "Events of the jobs from 0 to 999999."),
    (
        "audit_event_jobs",
        "audit_event_job_others",
        "DEFAULT",
        "Events of erased jobs, and of jobs that have no other partition.",
    ),
)
OPTIONS = {
    "prediction_0": "(LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080)",
    "prediction_others": "(LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080)",
    "audit_event_jobs": "(LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY) PARTITION BY RANGE (entity_id)",
}
EVENTS = "(LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY, PRIMARY KEY (id))"

# What jobs use unless they say otherwise; one policy a strategy; and the controls of an honest evaluation.
POLICIES = """
INSERT INTO loracomp.policy (name, description, router, weighting, strategy, max_adapters, k, contrast) VALUES
('default', 'Similar examples choose the adapters; their exact weighted sum (cat).', 'retrieval', 'similarity', 'cat', 8, 30, 0),
('cat', 'As default, merged by Concatenation: exactly the weighted sum.', 'retrieval', 'similarity', 'cat', 8, 30, 0),
('linear', 'As default, merged by Linear, as the paper does.', 'retrieval', 'similarity', 'linear', 8, 30, 0),
('ties', 'As default, merged by TIES.', 'retrieval', 'similarity', 'ties', 8, 30, 0),
('magnitude_prune', 'As default, merged by Magnitude Prune.', 'retrieval', 'similarity', 'magnitude_prune', 8, 30, 0),
('dare_linear', 'As default, merged by DARE and Linear.', 'retrieval', 'similarity', 'dare_linear', 8, 30, 0),
('dare_ties', 'As default, merged by DARE and TIES.', 'retrieval', 'similarity', 'dare_ties', 8, 30, 0),
('nearest', 'The adapter of the most probable task alone.', 'retrieval', 'similarity', 'linear', 1, 30, 0),
('contrast', 'As default, minus 0.3 times the base model''s score of each choice.', 'retrieval', 'similarity', 'cat', 8, 30, 0.3),
('nearest_contrast', 'As nearest, minus 0.3 times the base model''s score of each choice.', 'retrieval', 'similarity', 'cat', 1, 30, 0.3),
('uniform', 'Control: the nucleus with equal weights.', 'retrieval', 'uniform', 'cat', 8, 30, 0),
('base', 'Control: the base model alone.', 'base', 'similarity', 'linear', 8, 30, 0),
('own_task', 'Control: the adapter of the job''s own task alone.', 'own_task', 'similarity', 'linear', 1, 30, 0),
('own_task_contrast', 'Control: as own_task, minus 0.3 times the base model''s score of each choice.', 'own_task', 'similarity', 'cat', 8, 30, 0.3),
('random', 'Control: random adapters with the weights that retrieval gave.', 'random', 'similarity', 'cat', 8, 30, 0),
('random_parameters', 'Control: random numbers of the same norm.', 'random_parameters', 'similarity', 'cat', 8, 30, 0),
('measured', 'Adapters that measured examples expect to help; where none does, the base model.', 'retrieval', 'measured', 'cat', 3, 100, 0)
"""

LIMITS = "INSERT INTO loracomp.queue_limit DEFAULT VALUES"


def _execute(statement: Executable, *_: object) -> None:
    op.execute(str(statement.compile(dialect=postgresql.dialect(paramstyle="named"))).replace(":", r"\:"))


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS bi")
    op.execute(FUNCTIONS)
    engine = create_mock_engine("postgresql+psycopg://", _execute, paramstyle="named")
    metadata.create_all(engine, checkfirst=False)
    for table in metadata.sorted_tables:
        for column in table.columns:
            if "alter" in column.info:
                op.execute(f"ALTER TABLE {table.fullname} ALTER COLUMN {column.name} {column.info['alter']}")
    for statements in (SEQUENCES, TRACE, RESULTS, STATISTICS, POLICIES, LIMITS):
        op.execute(statements)
    op.execute("CREATE SCHEMA loracomp_parts")
    op.execute(
        "COMMENT ON SCHEMA loracomp_parts IS 'Partitions of tables of schema loracomp, counters, and the parts of declarations.'"
    )
    for whole, part, bound, comment in PARTITIONS:
        schema = "loracomp_parts" if whole == "audit_event_jobs" else "loracomp"
        op.execute(f"CREATE TABLE loracomp_parts.{part} {OPTIONS.get(part, EVENTS)}")
        op.execute(f"COMMENT ON TABLE loracomp_parts.{part} IS '{comment}'")
        op.execute(f"ALTER TABLE loracomp_parts.{part} ENABLE ROW LEVEL SECURITY")
        if whole == "prediction":
            op.execute(f"ALTER TABLE loracomp_parts.{part} ALTER COLUMN output SET STATISTICS 0")
        op.execute(f"ALTER TABLE {schema}.{whole} ATTACH PARTITION loracomp_parts.{part} {bound}")


def downgrade() -> None:
    op.execute("DROP TYPE loracomp.route_trace, loracomp.answer, loracomp.measured")
    op.execute("DROP TABLE IF EXISTS loracomp.next_embedding")  # of a change of the encoder that is under way
    metadata.drop_all(op.get_bind(), checkfirst=False)
    op.execute(
        "DROP FUNCTION loracomp.texts_are_not_blank(text[]), loracomp.texts_are_distinct(text[]), "
        "loracomp.texts_length(text[]), loracomp.is_blank(text), loracomp.white_space()"
    )
    op.execute("DROP SCHEMA bi, loracomp_parts")
