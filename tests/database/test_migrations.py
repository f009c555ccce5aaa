"""Migrations by alembic's own command: from nothing and back to nothing, and that they lead to loracomp.tables."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine

from loracomp.database import connections as db
from loracomp.database import revision, schema
from loracomp.database.tables import metadata
from loracomp.errors import RefusedError, SchemaMismatchError
from loracomp.model.encoder import Encoder
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.tasks import add_rows, add_task

ROOT = Path(__file__).parents[2]

# Whatever depends on anything, but for what is named by numbers; and functions with their text.
OBJECTS = """
SELECT DISTINCT pg_describe_object(classid, objid, objsubid) AS object FROM pg_depend
WHERE pg_describe_object(classid, objid, objsubid) !~ 'pg_toast|pg_temp|RI_ConstraintTrigger'
UNION
SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname !~ '^pg_'
UNION
SELECT format('%s: %s', p.oid::regprocedure, pg_get_functiondef(p.oid)) FROM pg_proc AS p
WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi')
ORDER BY 1
"""

# SQLAlchemy has no word for them.
STORAGE = {
    "loracomp.example_embedding.embedding": "p",
    "loracomp.principal_axis.axis": "p",
    "loracomp.adapter_part.bytes": "e",
    **{
        f"loracomp.prediction.{column}": "e"
        for column in (
            "query_embedding", "choice_scores", "similarities", "probabilities", "weights", "adapter_sha256",
            "adapter_weights", "composition_digest", "base_fingerprint", "expected_gains", "choice_biases",
        )
    },
}  # fmt: skip

# What submitters could find out by EXPLAIN, of jobs that they don't see; and what erasing would leave behind.
NO_STATISTICS = {
    *(
        f"loracomp.job.{column}"
        for column in (
            "prompt", "choices", "stop", "idempotency_key", "tags", "exclude_tasks", "task", "expected", "error",
            "lease_token", "tasks", "weights", "adapter_ids", "chat_template", "system_text",
        )
    ),
    "loracomp.prediction.output",
    *(f"loracomp.example.{column}" for column in ("prompt", "choices", "answer")),
}  # fmt: skip

DEFINITIONS = {
    "constraint": """
        SELECT format('%s: %s', conrelid::regclass, conname) AS name, pg_get_constraintdef(oid) AS definition
        FROM pg_constraint WHERE connamespace = 'loracomp'::regnamespace
    """,
    "index": """
        SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
        FROM pg_index JOIN pg_class ON oid = indrelid
        WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p')
    """,
    "column": """
        SELECT format('%s.%s', attrelid::regclass, attname) AS name, jsonb_build_object(
            'type', format_type(atttypid, atttypmod), 'not null', attnotnull, 'identity', attidentity,
            'storage', attstorage, 'statistics', nullif(attstattarget, -1), 'default', pg_get_expr(adbin, adrelid),
            'comment', col_description(attrelid, attnum)
        ) AS definition
        FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0
    """,
    "table": """
        SELECT oid::regclass::text AS name, jsonb_build_object(
            'kind', relkind, 'options', reloptions, 'partitioned', pg_get_partkeydef(oid),
            'comment', CASE WHEN relkind <> 'S' THEN obj_description(oid, 'pg_class') END
        ) AS definition
        FROM pg_class WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p', 'S')
    """,
}


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a person would run it, in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT, env={**os.environ, "LORACOMP_DATABASE_URL": url}, text=True, capture_output=True, check=False,
    )  # fmt: skip


def succeeds(url: str, *arguments: str) -> str:
    done = alembic(url, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def objects(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(OBJECTS)]


def test_upgrade_from_nothing_and_downgrade_to_nothing_by_the_bare_command(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE EXTENSION vector")  # stays: it may have been there before
    before = objects(empty_database)
    succeeds(empty_database, "upgrade", "head")
    upgraded = objects(empty_database)
    assert "function loracomp.claim_jobs(text,text,integer,interval,integer,bigint[])" in upgraded
    assert schema.initialize(empty_database) == []
    succeeds(empty_database, "downgrade", "base")
    assert objects(empty_database) == before
    succeeds(empty_database, "upgrade", "head")
    assert objects(empty_database) == upgraded


ROWS_OF_BEFORE = """
ALTER TABLE loracomp.example_embedding ALTER COLUMN embedding TYPE vector(3);
INSERT INTO loracomp.task (name) VALUES ('tea');
INSERT INTO loracomp.example (task_id, split, source_ref, content_hash)
SELECT id, 'train', n::text, sha256(n::text::bytea) FROM loracomp.task, generate_series(1, 2) AS n;
INSERT INTO loracomp.example_embedding
SELECT id, task_id, CASE source_ref WHEN '1' THEN '[0.6, 0.8, 0]' ELSE '[0, 0, 1]' END::vector FROM loracomp.example;
"""
KEPT = """
SELECT embedding::text, (SELECT format_type(atttypid, atttypmod) || attstorage::text FROM pg_attribute
    WHERE attrelid = 'loracomp.example_embedding'::regclass AND attname = 'embedding')
FROM loracomp.example_embedding ORDER BY example_id
"""


def test_embeddings_of_any_length_outlast_the_change_to_half_precision_and_back(empty_database: str) -> None:
    succeeds(empty_database, "upgrade", "0014")
    halved = ["[0.60009766,0.7998047,0]", "[0,0,1]"]
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(ROWS_OF_BEFORE)
        for revision, kind in (("0015", "halfvec(3)p"), ("0014", "vector(3)p")):
            succeeds(empty_database, "upgrade" if kind.startswith("half") else "downgrade", revision)
            assert connection.execute(KEPT).fetchall() == [(vector, kind) for vector in halved]


ANSWERS_OF_BEFORE = """
INSERT INTO loracomp.base_model
    (name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)
VALUES ('tiny', 'nowhere', repeat('a', 64), 'Tiny', 128, 1, '{}', true);
INSERT INTO loracomp.job (prompt, base_model, submitted_by)
SELECT 'a', 'tiny', current_user FROM generate_series(1, 1000);
INSERT INTO loracomp.audit_event (entity, entity_id, action) SELECT 'job', id, 'update' FROM loracomp.job;
INSERT INTO loracomp.audit_event (entity, action) VALUES ('job', 'delete'), ('task', 'insert');
INSERT INTO loracomp.prediction (
    job_id, output, policy_settings, base_model, base_fingerprint, encoder, code_version, submitted_by
)
SELECT id, 'b', '{}', 'tiny', 'f', 'e', 'c', submitted_by FROM loracomp.job;
CREATE INDEX their_index ON loracomp.prediction USING gin (example_ids);
GRANT SELECT (job_id, output) ON loracomp.prediction TO PUBLIC;
"""
MOVED = """
SELECT count(*), min(tableoid::regclass::text),
    has_column_privilege('public', 'loracomp.prediction', 'output', 'SELECT'),
    (SELECT count(*) FROM pg_index WHERE indrelid = 'loracomp.prediction'::regclass AND indisvalid)
FROM loracomp.prediction
"""
EVENTS = (
    "SELECT count(*), min(tableoid::regclass::text), max(tableoid::regclass::text), max(id) FROM loracomp.audit_event"
)
NEW_EVENT = "INSERT INTO loracomp.audit_event (entity, entity_id, action) VALUES ('job', %s, 'update') RETURNING id"
BOUNDS = (
    "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname ~ '_of_the_first_partition$' ORDER BY conname"
)


@pytest.fixture
def answered(empty_database: str) -> str:
    """URL of a database of before the partitions, with a thousand answers, and an index and a grant of its users."""
    succeeds(empty_database, "upgrade", "0015")
    with psycopg.connect(empty_database) as connection:
        connection.execute(ANSWERS_OF_BEFORE)
    return empty_database


def test_answers_stay_where_they_are_and_are_not_read_when_they_become_a_partition(answered: str) -> None:
    where = "SELECT pg_relation_filenode(%s::regclass)"
    with psycopg.connect(answered, autocommit=True) as connection:
        before = [
            connection.execute(where, [f"loracomp.{table}"]).fetchone() for table in ("prediction", "audit_event")
        ]
        with schema._checked(answered):
            assert connection.execute(BOUNDS).fetchall() == [
                ("CHECK (((entity <> 'job'::text) OR (entity_id IS NULL) OR (entity_id < 2000000)))",),
                ("CHECK ((job_id < 2000000))",),
            ]
            said: list[str | None] = []
            with psycopg.connect(answered, options="-c client_min_messages=debug1") as migrating:
                migrating.add_notice_handler(lambda notice: said.append(notice.message_primary))
                engine = create_engine("postgresql+psycopg://", creator=lambda: migrating)
                with engine.connect() as bound:
                    command.upgrade(schema.alembic_config(bound), "0018")
                    bound.commit()
        implied = [text.split('"')[1] for text in said if text and text.endswith("is implied by existing constraints")]
        assert implied == ["prediction_0", "audit_event_others"]
        parts = ("loracomp_parts.prediction_0", "loracomp_parts.audit_event_others")
        assert [connection.execute(where, [part]).fetchone() for part in parts] == before
        assert connection.execute(MOVED).fetchone() == (1000, "loracomp_parts.prediction_0", True, 3)
        assert connection.execute(BOUNDS).fetchall() == []


def test_answers_outlast_the_upgrade_and_the_downgrade(answered: str) -> None:
    schema.initialize(answered)
    with psycopg.connect(answered, autocommit=True) as connection:
        assert connection.execute(MOVED).fetchone() == (1000, "loracomp_parts.prediction_0", True, 3)
        (range_,) = connection.execute("SELECT * FROM loracomp.job_ranges()").fetchall()
        assert range_ == (0, 2000000, "loracomp_parts.prediction_0", None)
        kept = "loracomp_parts.audit_event_others"
        assert connection.execute(EVENTS).fetchone() == (1002, kept, kept, 1002)
        assert connection.execute(NEW_EVENT, [2500000]).fetchone() == (1003,)
        succeeds(answered, "downgrade", "0015")
        assert connection.execute(MOVED).fetchone() == (1000, "loracomp.prediction", True, 3)
        assert connection.execute(EVENTS).fetchone() == (1003, *["loracomp.audit_event"] * 2, 1003)
        assert connection.execute(NEW_EVENT, [7]).fetchone() == (1004,)
        connection.execute("DELETE FROM loracomp.audit_event WHERE entity_id = 2500000")
        succeeds(answered, "upgrade", "head")
        assert connection.execute(MOVED).fetchone() == (1000, "loracomp_parts.prediction_0", True, 3)
        assert connection.execute(EVENTS).fetchone() == (1003, kept, kept, 1004)
        assert connection.execute(NEW_EVENT, [7]).fetchone() == (1005,)


@pytest.mark.parametrize(
    ("table", "made", "named"),
    [
        ("prediction", "VIEW theirs AS SELECT count(*) FROM loracomp.prediction", "rule _RETURN on view theirs"),
        ("audit_event", "VIEW theirs AS SELECT count(*) FROM loracomp.audit_event", "rule _RETURN on view theirs"),
        ("prediction", "PUBLICATION theirs FOR TABLE loracomp.prediction", "publication of table prediction"),
    ],
)
def test_what_would_mean_one_partition_alone_is_named_and_nothing_changes(
    answered: str, table: str, made: str, named: str
) -> None:
    with psycopg.connect(answered, autocommit=True) as connection:
        connection.execute(f"CREATE {made}".encode())
        before = objects(answered)
        with pytest.raises(RefusedError, match=f"prevents this: {named}.* depends on table {table}"):
            schema.initialize(answered)
        assert objects(answered) == before
        connection.execute(f"DROP {made.split(maxsplit=1)[0]} theirs".encode())
    assert schema.initialize(answered) != []


PURGED_BEFORE = """
INSERT INTO loracomp.base_model
(name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)
VALUES ('toy', 'made up', repeat('0', 64), 'Toy', 128, 1, '{}', true);
INSERT INTO loracomp.policy (name) VALUES ('default') ON CONFLICT DO NOTHING;
INSERT INTO loracomp.task (name) VALUES ('tea');
INSERT INTO loracomp.reported_tag (key) VALUES ('country');
INSERT INTO loracomp.job (prompt, choices, policy, base_model, status, finished_at, expected, task, tags, attempts,
    is_correct, submitted_by)
SELECT 'x', '{yes,no}', 'default', 'toy', 'succeeded', now() - make_interval(days => d), 'yes', 'tea',
    '{"country": "DE"}', 1, true, 'ann'
FROM unnest('{9,3}'::int[]) AS d;
INSERT INTO loracomp.prediction (job_id, output, choice_index, policy_settings, timings, prompt_tokens, base_model,
    base_fingerprint, encoder, code_version, submitted_by, batch_size)
SELECT id, 'yes', 1, '{}', '{"encode": 100, "route": 100, "predict": 800}', 7, 'toy', 'f', 'e', '1', 'ann', 2
FROM loracomp.job;
INSERT INTO loracomp.purged_day
SELECT (now() AT TIME ZONE 'UTC')::date - d, 'ann', 'default', 'toy', null, t, 5, 4, 1, 6, 70, 4, 2.5, 3, 2, 1
FROM unnest('{9,20}'::int[]) AS d, unnest('{tea,NULL}'::text[]) AS t;
INSERT INTO loracomp.purged_tag
SELECT (now() AT TIME ZONE 'UTC')::date - d, 'country', 'DE', 'yes', 'default', 'toy', 4, 2, 1
FROM unnest('{9,20}'::int[]) AS d;
"""
CARRIED = {
    "SELECT is_closed FROM loracomp.report_day ORDER BY day": [(True,), (True,), (False,)],
    "SELECT jobs, succeeded, failed, attempts, prompt_tokens, compute_s FROM bi.cost_by_submitter ORDER BY day": [
        (10, 8, 2, 12, 140, 5.0),
        (11, 9, 2, 13, 147, 5.5),
        (1, 1, 0, 1, 7, 0.5),
    ],
    "SELECT asked, n, correct FROM bi.accuracy_by_day WHERE own_task = 'tea' ORDER BY day": [
        (3, 2, 1),
        (4, 3, 2),
        (1, 1, 1),
    ],
    "SELECT n, asked, correct FROM bi.answers_by_tag ORDER BY day": [(4, 2, 1), (5, 3, 2), (1, 1, 1)],
    "SELECT count(*) FROM bi.latency_by_day WHERE step = 'predict'": [(1,)],
}


def test_sums_over_purged_jobs_become_reports_of_closed_days(empty_database: str) -> None:
    """With what was left of a day that was purged in part; days after it are due at once for the next refresh."""
    succeeds(empty_database, "upgrade", "0018")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(PURGED_BEFORE)
        succeeds(empty_database, "upgrade", "head")
        assert connection.execute("SELECT count(*) FROM bi.latency_by_day").fetchone() == (0,)
        connection.execute("SELECT loracomp.refresh_reports('10 years')")
        for query, rows in CARRIED.items():
            assert connection.execute(query.encode()).fetchall() == rows, query


def test_check_finds_nothing_to_do_and_no_command_that_only_looks_changes_anything(database: str) -> None:
    before = objects(database)
    assert "No new upgrade operations detected" in succeeds(database, "check")
    assert "(head)" in succeeds(database, "current")
    succeeds(database, "history")
    assert objects(database) == before


def test_looking_at_an_empty_database_leaves_it_empty(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE EXTENSION vector")
    before = objects(empty_database)
    succeeds(empty_database, "current")
    assert objects(empty_database) == before


def test_offline_mode_is_refused_before_anything_is_touched(database: str) -> None:
    before = objects(database)
    done = alembic(database, "downgrade", "head:base", "--sql")
    assert done.returncode != 0
    assert "--sql is not possible" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert objects(database) == before


def test_a_view_in_the_way_of_a_downgrade_is_named_and_nothing_is_lost(database: str) -> None:
    with db.connect(database) as connection:
        connection.execute("CREATE SCHEMA reports")
        connection.execute("CREATE VIEW reports.backlog AS SELECT count(*) FROM loracomp.job")
    before = objects(database)
    done = alembic(database, "downgrade", "base")
    assert done.returncode != 0
    assert "prevents this: view reports.backlog depends on table job" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert objects(database) == before


@pytest.fixture
def described(empty_database: str) -> str:
    """URL of a database made from tables.py alone, with the functions that its constraints call."""
    helpers = """
        CREATE EXTENSION vector;
        CREATE SCHEMA loracomp;
        CREATE FUNCTION loracomp.is_blank(text) RETURNS boolean IMMUTABLE RETURN false;
        CREATE FUNCTION loracomp.texts_are_not_blank(text[]) RETURNS boolean IMMUTABLE RETURN true;
        CREATE FUNCTION loracomp.texts_are_distinct(text[]) RETURNS boolean IMMUTABLE RETURN true;
        CREATE FUNCTION loracomp.texts_length(text[]) RETURNS bigint IMMUTABLE RETURN 0;
    """
    with psycopg.connect(empty_database) as connection:
        connection.execute(helpers)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database))
    metadata.create_all(engine)
    engine.dispose()
    return empty_database


def test_migrations_lead_to_what_tables_py_describes(database: str, described: str) -> None:
    migrated, wanted = definitions(database), definitions(described)
    for column, storage in STORAGE.items():
        wanted["column", column]["storage"] = storage
    for column in NO_STATISTICS:
        wanted["column", column]["statistics"] = 0
    assert migrated == wanted


def definitions(url: str) -> dict[tuple[str, str], Any]:
    with db.connect(url) as connection:
        connection.execute("SET search_path = public, pg_catalog")
        return {
            (kind, row["name"]): row["definition"]
            for kind, query in DEFINITIONS.items()
            for row in connection.execute(query)
            if "alembic_version" not in row["name"]
        }


def test_a_change_of_the_encoder_leaves_these_tables(database: str, minilm: Encoder, shorter: Encoder) -> None:
    set_encoder(database, minilm)
    with db.connect(database) as connection:
        connection.execute("GRANT SELECT ON loracomp.example_embedding TO loracomp_worker, pg_monitor")
        add_task(connection, "tea")
        row = {"split": "train", "prompt": "Is tea hot?", "answer": "yes", "content_hash": "a" * 64}
        add_rows(connection, "tea", [row])
        embed_examples(connection, minilm)
    before = definitions(database), objects(database)
    assert set_encoder(database, shorter) is not None
    changed = definitions(database)
    column = changed["column", "loracomp.example_embedding.embedding"]
    assert column["type"] == "halfvec(192)"
    column["type"] = "halfvec(832)"
    assert (changed, objects(database)) == before
    with db.connect(database) as connection:
        granted = connection.execute("SELECT relacl::text FROM pg_class WHERE relname = 'example_embedding'").fetchone()
    assert granted is not None
    assert "pg_monitor=r/" in granted["relacl"]
    assert "loracomp_worker" not in granted["relacl"], "what sql/ does not grant its own roles is gone, as after init"


NOT_OF_PREDICTION = """
SELECT t.attname FROM pg_attribute AS t
WHERE t.attrelid = 'loracomp.route_trace'::regclass AND t.attnum > 0 AND NOT t.attisdropped AND NOT EXISTS (
    SELECT FROM pg_attribute AS p
    WHERE p.attrelid = 'loracomp.prediction'::regclass AND (p.attname, p.atttypid) = (t.attname, t.atttypid)
)
"""


def test_a_trace_holds_columns_of_prediction(database: str) -> None:
    with db.connect(database) as connection:
        assert connection.execute(NOT_OF_PREDICTION).fetchall() == []


def test_a_database_of_before_the_first_release_is_refused_and_left_alone(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE loracomp.adapter_weights ()")
        connection.execute("UPDATE loracomp.alembic_version SET version_num = '0029'")
    before = objects(database)
    for function in (schema.initialize, revision.check_revision):
        with pytest.raises(SchemaMismatchError, match=r"before the first release .* `loracomp db reset`"):
            function(database)
    assert objects(database) == before


IMPORTED = re.compile(r"^\s*(?:from|import) (\S+)", flags=re.MULTILINE)


def test_migrations_import_nothing_that_may_change() -> None:
    found = {name for file in ROOT.glob("migrations/versions/*.py") for name in IMPORTED.findall(file.read_text())}
    assert {name for name in found if name.startswith("loracomp")} == set()
