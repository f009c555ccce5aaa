"""`loracomp answers export` and `import`: corrections as CSV."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from answers_data import as_alice, keep, keep_and_claim
from job_data import record
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.cli import answers
from loracomp.database.connections import Connection
from loracomp.errors import NotFoundError, RefusedError, UsageError
from people_fixtures import login, one

NOTES = """
CREATE TABLE notes (shop text, at timestamptz, t text, PRIMARY KEY (shop, at));
SELECT loracomp.create_answers('kinds', 'notes', '{t}', choices => '{good,"bad, or worse"}');
INSERT INTO notes SELECT s, '2026-03-04 05:06:07Z', s FROM (VALUES ('a'), ('b, c'), (E'd "e"\\nf')) AS v (s);
"""
TWO_TABLES = """
CREATE TABLE {0} (id text PRIMARY KEY, body text);
SELECT loracomp.create_answers('{0}_said', '{0}', 'Say: {{body}}', max_new_tokens => 20);
"""
CONTROLS = [chr(code) for code in (*range(1, 32), *range(127, 160))]
PARTS = [
    *CONTROLS,
    *'",;=+-@|\\# ',
    "\r\n",
    "\r\r",
    '""',
    "\u00a0",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\U0001f600",
    *"abcdef",
]


@pytest.fixture
def alice(connection: Connection, database: str, logins: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """She has declared a table with three rows, whose keys need quotes in CSV."""
    monkeypatch.setenv("LORACOMP_DATABASE_URL", f"{database} user={login('alice')}")
    with as_alice(database) as opened:
        opened.execute(NOTES)
        keep(connection)
        yield opened


def test_exported_corrections_are_imported_again(
    alice: Connection, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    alice.execute("UPDATE kinds SET correct = CASE shop WHEN 'a' THEN 'good' ELSE 'bad, or worse' END")
    alice.execute("SET TimeZone = 'Asia/Kathmandu'")
    answers.export_corrections("kinds")
    file = tmp_path / "corrections.csv"
    file.write_bytes(capsysbinary.readouterr().out)
    corrected = "SELECT jsonb_object_agg(shop, correct) AS said FROM kinds"
    before = one(alice, corrected)
    alice.execute("UPDATE kinds SET correct = NULL WHERE shop <> 'a'")
    answers.import_answers("kinds", str(file), as_json=True)
    (done,) = json.loads(capsysbinary.readouterr().out)
    assert done == {"name": "kinds", "corrected": 2, "unchanged": 1, "refused": 0}
    assert one(alice, corrected) == before


def test_any_text_comes_back_from_the_file(
    alice: Connection, connection: Connection, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    """Keys, answers and corrections of random parts, of which each is at the beginning, at the end and alone once."""
    chance = random.Random(7)

    def texts() -> list[str]:
        mixed = ["".join(chance.choices(PARTS, k=chance.randint(1, 6))) for _ in range(200)]
        return [text for part in PARTS for text in (part, f"{part}x", f"x{part}", f"x{part}y")] + mixed

    keys = list(dict.fromkeys(texts()))
    corrections = dict(zip(keys, (f"{text}." for text in texts()), strict=False))
    for table in ("notes_a", "notes_b"):
        alice.execute(TWO_TABLES.format(table).encode())
        with alice.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {table} VALUES (%s, 'x')".encode(), [[key] for key in keys])
    answers_given = iter(texts())
    while jobs := keep_and_claim(connection):
        rows = [{"job_id": job.id, "output": next(answers_given, "x"), "adapter_sha256": []} for job in jobs]
        record(connection, {job.id: job.lease_token for job in jobs}, rows)
    with alice.cursor() as cursor:
        correct = "UPDATE notes_a_said SET correct = %s WHERE id = %s"
        cursor.executemany(correct, [(text, key) for key, text in corrections.items()])
    answers.export_corrections("notes_a_said")
    file = tmp_path / "corrections.csv"
    file.write_bytes(capsysbinary.readouterr().out)
    answers.import_answers("notes_b_said", str(file), as_json=True)
    (done,) = json.loads(capsysbinary.readouterr().out)
    assert done == {"name": "notes_b_said", "corrected": len(corrections), "unchanged": 0, "refused": 0}
    said = alice.execute("SELECT id, correct FROM notes_b_said WHERE correct IS NOT NULL").fetchall()
    assert {row["id"]: row["correct"] for row in said} == corrections


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_standard_input_is_read_as_a_file_is(
    alice: Connection, encoding: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mark that some programs write before UTF-8, and in UTF-8 whatever the terminal's encoding is."""
    lines = 'shop,at,correct\r\n"b, c",2026-03-04T05:06:07,good\r\n"\u00fc\rx",2026-03-04T05:06:07,good\r\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode("utf-8-sig")), encoding=encoding))
    with pytest.raises(RefusedError, match="1 lines were left out"):
        answers.import_answers("kinds", "-")
    assert "line 4 is left out: no answered row has the key \u00fc" in capsys.readouterr().err
    assert one(alice, "SELECT count(correct) AS n FROM kinds") == {"n": 1}


def test_a_line_that_cannot_be_used_is_named_and_the_others_are_used(
    alice: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "corrections.csv"
    at = "2026-03-04T05:06:07"
    lines = f'note,correct,shop,at\nx,wrong,a,{at}\nx,good,nowhere,{at}\nx,good,a,{at}\nx,,"b, c",{at}\n'
    file.write_text("\ufeff" + lines)
    with pytest.raises(RefusedError, match="2 lines were left out"):
        answers.import_answers("kinds", str(file))
    told = capsys.readouterr().err
    assert "line 2 is left out: correct must be one of the choices" in told and "line 3 is left out" in told
    assert one(alice, "SELECT jsonb_object_agg(shop, correct) AS said FROM kinds WHERE correct <> ''") == {
        "said": {"a": "good"}
    }


def test_a_key_that_no_row_has_is_said_to_be_unknown(
    alice: Connection, connection: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alice.execute("CREATE TABLE cups (id integer PRIMARY KEY, t text)")
    alice.execute("SELECT loracomp.create_answers('heat', 'cups', '{t}', choices => '{hot,cold}')")
    alice.execute("INSERT INTO cups VALUES (1, 'tea')")
    keep(connection)
    file = tmp_path / "corrections.csv"
    file.write_text("id,correct\n01,hot\n99,hot\n1,hot\n")
    with pytest.raises(RefusedError, match="2 lines were left out"):
        answers.import_answers("heat", str(file))
    told = " ".join(capsys.readouterr().err.split())
    for line, key in ((2, "01"), (3, "99")):
        assert f"line {line} is left out: no answered row has the key {key}" in told
    assert "meanwhile" not in told
    assert one(alice, "SELECT id, correct FROM heat") == {"id": 1, "correct": "hot"}


def test_a_line_with_too_few_or_too_many_fields_is_left_out(
    alice: Connection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "corrections.csv"
    at = "2026-03-04T05:06:07"
    file.write_text(f'shop,at,correct\na,{at}\n\n"b, c",{at},bad, or worse\n"d ""e""\nf",{at},good\na\n')
    with pytest.raises(RefusedError, match="3 lines were left out"):
        answers.import_answers("kinds", str(file))
    told = " ".join(capsys.readouterr().err.split())
    for line, count in ((2, 2), (4, 4), (7, 1)):
        assert f"line {line} is left out: it must have 3 fields (shop, at, correct), and has {count}" in told
    assert one(alice, "SELECT count(correct) AS n FROM kinds") == {"n": 1}


def test_what_is_no_file_of_corrections_is_refused(alice: Connection, tmp_path: Path) -> None:
    file = tmp_path / "corrections.csv"
    file.write_text("shop,correct\na,good\n")
    with pytest.raises(UsageError, match="the file has no column at"):
        answers.import_answers("kinds", str(file))
    file.write_text("shop,at,correct,answer,correct\na,2026-03-04,good,good,bad\n")
    with pytest.raises(UsageError, match="the file has several columns correct"):
        answers.import_answers("kinds", str(file))
    file.write_bytes(b"shop,at,correct\n\xff,x,good\n")
    with pytest.raises(UsageError, match="not a CSV file in UTF-8"):
        answers.import_answers("kinds", str(file))
    file.write_text('shop,at,correct\na,2026-03-04T05:06:07,good\nb,"y,good\n')
    with pytest.raises(UsageError, match="after line 3: not a CSV file in UTF-8: unexpected end of data"):
        answers.import_answers("kinds", str(file))
    assert one(alice, "SELECT count(correct) AS n FROM kinds") == {"n": 0}
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="the file has no column shop, at, correct"):
        answers.import_answers("kinds", str(file))
    with pytest.raises(NotFoundError, match="not a declaration of yours"):
        answers.export_corrections("notes")
