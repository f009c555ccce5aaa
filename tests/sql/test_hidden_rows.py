"""What a view hides, no condition of a reader's query sees: neither a function of theirs nor the error of a cast."""

from collections.abc import Iterator

import psycopg
import pytest

from conftest import create_database, drop_database
from loracomp.database import connections as db
from people_data import add_examples, answer, fill_every_view, submit
from people_fixtures import connect, login, values

RELATIONS = """
SELECT c.oid::regclass::text AS relation, array_agg(quote_ident(a.attname)) AS columns
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi') AND c.relkind IN ('v', 'r', 'p')
    AND has_any_column_privilege(c.oid, 'select') AND has_column_privilege(c.oid, a.attnum, 'select')
GROUP BY c.oid ORDER BY 1
"""
LEAK = """
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
$$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$
"""


@pytest.fixture(scope="module")
def place(server: str, template: str, logins: None) -> Iterator[str]:
    """Rows in every view. What neither an analyst nor bob may see says SECRET: words, a task, and tags."""
    url = create_database(server, "hidden_rows", template)
    with db.connect(url) as owner:
        fill_every_view(owner)
        examples = add_examples(owner, "SECRET-task", reader_role=login("readers"))
        hidden = {"composed_tasks": ["SECRET-task"], "adapter_weights": [1.0], "tasks": ["SECRET-task"]}
        shares = {"probabilities": [1.0], "weights": [1.0]}
        owner.execute(
            "SELECT loracomp.cancel_job(id) FROM loracomp.job WHERE status = 'queued'"
        )  # else it is claimed too
        answer(owner, submit(owner, tags='{"t": "SECRET-tag"}'), examples, **hidden, **shares)
        submit(owner, "SECRET-prompt", tags='{"t": "SECRET-tag"}')
        owner.execute("SELECT loracomp.set_reported_tags('{country,t}')")
        owner.execute("SELECT loracomp.refresh_reports()")
        # The owner may do it by hand; then the report still has the tag's rows.
        owner.execute("DELETE FROM loracomp.reported_tag WHERE key = 't'")
        assert values(owner, "SELECT count(*) > 0 FROM loracomp.answers_by_tag WHERE value LIKE 'SECRET%%'") == {True}
    yield url
    drop_database(server, "hidden_rows")


@pytest.mark.parametrize("person", ["ana", "bob"])
def test_no_condition_sees_what_is_hidden(place: str, person: str) -> None:
    heard: list[str] = []
    seen: set[str] = set()
    with connect(place, person) as reader:
        reader.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
        reader.execute(LEAK)
        for relation in reader.execute(RELATIONS).fetchall():
            for column in relation["columns"]:
                condition = f"SELECT FROM {relation['relation']} AS v WHERE"
                reader.execute(f"{condition} pg_temp.leak(v.{column}::text)".encode())
                try:
                    reader.execute(f"{condition} v.{column}::text::xid8 = '1'::xid8".encode())
                except psycopg.Error as error:
                    heard.append(str(error))
                if told := [text for text in heard if "SECRET" in text]:
                    seen.add(f"{relation['relation']}.{column}: {told[0]}")
                heard.clear()
    assert not seen


def test_reports_forget_a_tag_that_is_not_listed_any_more(connection: db.Connection) -> None:
    """Also of days whose jobs are purged, which no refresh computes again."""
    fill_every_view(connection)
    connection.execute(
        "UPDATE loracomp.job SET finished_at = finished_at - interval '3 days' WHERE finished_at IS NOT NULL"
    )
    connection.execute("SELECT loracomp.set_reported_tags('{country,t}')")
    connection.execute("SELECT loracomp.refresh_reports()")
    connection.execute("SELECT loracomp.purge_jobs('1 day')")
    tags = "SELECT DISTINCT tag FROM loracomp.answers_by_tag"
    assert values(connection, tags) == {"country", "t"}
    connection.execute("SELECT loracomp.set_reported_tags('{country}')")
    assert values(connection, tags) == {"country"}
    connection.execute("SELECT loracomp.set_reported_tags('{}')")
    assert values(connection, tags) == set()
