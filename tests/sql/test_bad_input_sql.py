"""What must never be true of a row is refused where it enters, by a constraint whose name says what is wrong."""

from typing import Any

import psycopg
import pytest

from job_data import add_jobs
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.errors import RefusedError

NAN, INFINITE = float("nan"), float("inf")


def refused(connection: Connection, table: str, columns: dict[str, Any]) -> str | None:
    """Name of the constraint that refuses the row."""
    statement = f"INSERT INTO loracomp.{table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"
    with pytest.raises(psycopg.errors.IntegrityError) as caught:
        connection.execute(statement.encode(), list(columns.values()))
    return caught.value.diag.constraint_name


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"prompt": ""}, "prompt_must_not_be_blank"),
        ({"prompt": " \n\t\u00a0"}, "prompt_must_not_be_blank"),
        ({"prompt": "x" * 1_000_001}, "prompt_must_be_at_most_1000000_characters"),
        ({"choices": []}, "choices_must_be_a_list_of_2_to_1000"),
        ({"choices": ["a"]}, "choices_must_be_a_list_of_2_to_1000"),
        ({"choices": [["a", "b"], ["c", "d"]]}, "choices_must_be_a_list_of_2_to_1000"),
        ({"choices": [str(n) for n in range(1001)]}, "choices_must_be_a_list_of_2_to_1000"),
        ({"choices": ["a", "a"]}, "choices_must_be_distinct"),
        ({"choices": ["a", " "]}, "choices_must_not_be_null_or_blank"),
        ({"choices": ["a", None]}, "choices_must_not_be_null_or_blank"),
        ({"choices": ["a", "b"], "max_new_tokens": 8}, "give_choices_or_max_new_tokens_not_both"),
        ({"choices": ["a" * 600_000, "b" * 600_000]}, "choices_must_be_at_most_1000000_characters_together"),
        ({"descriptions": ["x", "y"]}, "descriptions_must_be_a_list_of_one_for_each_of_the_choices"),
        *(
            (
                {"choices": ["a", "b"], "descriptions": given},
                "descriptions_must_be_a_list_of_one_for_each_of_the_choices",
            )
            for given in ([], ["x"], ["x", "y", "z"], [["x", "y"], ["z", "w"]])
        ),
        ({"choices": ["a", "b"], "descriptions": ["x", None]}, "descriptions_must_not_be_null_or_blank"),
        ({"choices": ["a", "b"], "descriptions": ["x", "\t"]}, "descriptions_must_not_be_null_or_blank"),
        *(
            (
                {"choices": ["a", choice], "descriptions": ["x", described]},
                "described_choices_must_be_at_most_20000_characters_together",
            )
            for choice, described in (("b", "y" * 20_000), ("b" * 20_000, "y"), ("b" * 10_000, "y" * 10_000))
        ),
        ({"text_at": "[1,2)"}, "text_at_needs_choices"),
        *(
            (
                {"choices": ["a", "b"], "descriptions": ["x", "y"], "text_at": given, "prompt": "Is it wet?"},
                "text_at_must_lie_within_the_prompt",
            )
            for given in ("[0,3)", "[2,12)", "[4,)", "empty")
        ),
        ({"stop": ["a" * 10_001]}, "stop_must_be_at_most_10000_characters_together"),
        ({"tags": f'{{"a": "{"b" * 100_000}"}}'}, "tags_must_be_at_most_100000_characters"),
        ({"max_new_tokens": 0}, "max_new_tokens_must_be_between_1_and_100000"),
        ({"temperature": -0.1}, "temperature_must_be_between_0_and_100"),
        ({"temperature": float("nan")}, "temperature_must_be_between_0_and_100"),
        ({"temperature": float("inf")}, "temperature_must_be_between_0_and_100"),
        ({"top_p": 0}, "top_p_must_be_between_0.0001_and_1"),
        ({"top_p": float("nan")}, "top_p_must_be_between_0.0001_and_1"),
        ({"seed": -1}, "seed_must_not_be_negative"),
        *(
            ({"choices": ["a", "b"], **drawn}, "choices_are_scored_not_drawn_leave_out_temperature_top_p_seed")
            for drawn in ({"temperature": 1}, {"top_p": 0.5}, {"seed": 0})
        ),
        ({"choices": ["a", "b"], "stop": ["."]}, "choices_are_scored_not_generated_leave_out_stop"),
        ({"stop": [""]}, "stop_must_hold_at_most_16_texts_none_empty"),
        ({"stop": [str(n) for n in range(17)]}, "stop_must_hold_at_most_16_texts_none_empty"),
        ({"stop": [None]}, "stop_must_hold_at_most_16_texts_none_empty"),
        ({"stop": [["a"], ["b"]]}, "stop_must_hold_at_most_16_texts_none_empty"),
        ({"policy": "none such"}, "policy_must_exist"),
        ({"base_model": "none such"}, "base_model_must_exist"),
        ({"kind": "guess"}, "kind_must_be_predict_route_or_measure"),
        ({"priority": -11}, "priority_must_be_between_minus_10_and_10"),
        ({"priority": 2**31 - 1}, "priority_must_be_between_minus_10_and_10"),
        ({"attempts": -1}, "attempts_must_not_be_negative"),
        ({"max_attempts": 0}, "max_attempts_must_be_between_1_and_100"),
        ({"timeout_s": 0}, "timeout_s_must_be_between_1_and_86400"),
        ({"run_at": "infinity"}, "run_at_must_be_finite"),
        ({"run_at": "20000-01-01"}, "run_at_must_be_before_the_year_9999"),
        ({"idempotency_key": ""}, "idempotency_key_must_be_1_to_500_characters"),
        ({"tags": "[1]"}, "tags_must_be_a_json_object"),
        ({"exclude_tasks": ["none such"]}, "exclude_tasks_must_name_tasks"),
        ({"exclude_tasks": [None]}, "exclude_tasks_must_not_hold_null"),
        ({"exclude_tasks": [["none", "such"], ["there", "are"]]}, "exclude_tasks_must_name_tasks"),
        ({"task": "none such"}, "task_must_exist"),
        ({"example_id": 1}, "example_id_needs_an_expected_answer"),
        ({"choices": ["a", "b"], "expected": "c"}, "expected_must_be_one_of_the_choices"),
        ({"status": "lost"}, "status_must_be_a_known_one"),
        ({"status": "running"}, "a_running_job_and_only_it_has_a_lease"),
        ({"lease_token": 1, "lease_expires_at": "now", "claimed_at": "now"}, "a_running_job_and_only_it_has_a_lease"),
        ({"status": "failed"}, "an_ended_job_and_only_it_has_finished_at"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_job_is_refused(connection: Connection, columns: dict[str, Any], constraint: str):
    assert refused(connection, "job", {"prompt": "fine"} | columns) == constraint


@pytest.mark.parametrize("excluded", [["rte"], ["rte", "mnli"]])
def test_a_task_that_is_asked_for_and_excluded_is_named(connection: Connection, excluded: list[str]):
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('rte'), ('mnli'), ('qnli')")
    both = {"prompt": "fine", "tasks": ["mnli", "rte"], "exclude_tasks": excluded}
    assert refused(connection, "job", both) == "tasks_and_exclude_tasks_must_differ"
    says = f"both name {', '.join(sorted(excluded))}: remove it from one of them"
    with pytest.raises(RefusedError, match=says), db.translated_errors():
        add_jobs(connection, "fine", tasks=["mnli", "rte"], exclude_tasks=excluded)
    add_jobs(connection, "fine", tasks=["mnli", "rte"], exclude_tasks=["qnli"])


def test_a_constraint_is_said_once(connection: Connection):
    with pytest.raises(RefusedError, match=r"^choices must be distinct$"), db.translated_errors():
        add_jobs(connection, "fine", choices=["a", "a"])


WHITE_SPACE = {character for character in map(chr, range(1, 0x3100)) if character.isspace()}


def test_white_space_is_the_same_in_every_locale(connection: Connection):
    """White space is what Python counts as white space, under each of the server's collations."""
    collations = connection.execute(
        "SELECT quote_ident(collname) AS name FROM pg_collation"
        " WHERE collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))"
        " AND collname ~ '^(C|POSIX|C.utf8|C.UTF-8|en_US.utf8|ucs_basic|pg_c_utf8|unicode|en-x-icu|tr-x-icu)$'"
    ).fetchall()
    assert len(collations) >= 3
    for collation in collations:
        blank = (
            f"SELECT chr(n) AS found FROM generate_series(1, {0x3100 - 1}) AS g (n)"
            f" WHERE loracomp.is_blank(chr(n) COLLATE {collation['name']})"
        )
        assert {row["found"] for row in connection.execute(blank.encode())} == WHITE_SPACE, collation


@pytest.mark.parametrize("columns", [{"prompt": "{}"}, {"prompt": "Which?", "choices": ["a", "{}"]}])
def test_white_space_alone_is_no_text(connection: Connection, columns: dict[str, Any]):
    for blank in ["".join(sorted(WHITE_SPACE)), *WHITE_SPACE]:
        filled = {
            name: [text.format(blank) for text in value] if isinstance(value, list) else value.format(blank)
            for name, value in columns.items()
        }
        assert refused(connection, "job", filled) in {"prompt_must_not_be_blank", "choices_must_not_be_null_or_blank"}


def test_white_space_alone_is_no_name(connection: Connection):
    assert refused(connection, "policy", {"name": "\u00a0\t"}) == "policy_name_must_not_be_blank"
    assert refused(connection, "task", {"name": "\u2003"}) == "task_name_must_not_be_blank"


def test_a_line_is_short_and_has_no_white_space_but_spaces(connection: Connection):
    row = connection.execute(
        "SELECT loracomp.shorten(%s, 20) AS line", ["\u00a0one\u2003\n two\t\u3000three\u0085"]
    ).fetchone()
    assert row == {"line": "one two three"}


def test_an_idempotency_key_is_refused_by_a_plain_insert_the_second_time(connection: Connection):
    add_jobs(connection, "a", idempotency_key="k")
    again = {"prompt": "a", "idempotency_key": "k"}
    assert refused(connection, "job", again) == "idempotency_key_was_used_before"


def test_a_job_without_a_base_model_is_refused_where_none_is_the_default(connection: Connection):
    connection.execute("UPDATE loracomp.base_model SET is_default = false")
    constraint = "base_model_must_be_given_where_none_is_the_default"
    assert refused(connection, "job", {"prompt": "a"}) == constraint


def test_the_last_of_a_statement_takes_the_others_with_it(connection: Connection):
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("INSERT INTO loracomp.job (prompt) VALUES ('fine'), (' ')")
    assert connection.execute("SELECT FROM loracomp.job").fetchall() == []


def test_the_client_refuses_a_nul_byte(connection: Connection):
    with pytest.raises(psycopg.DataError, match="NUL"):
        add_jobs(connection, "a\0b")


def test_the_message_names_the_field_and_the_way_out(connection: Connection):
    with pytest.raises(RefusedError) as caught, db.translated_errors():
        add_jobs(connection, "a", exclude_tasks=["nope", "neither"])
    assert str(caught.value) == (
        "exclude tasks must name tasks: exclude_tasks names tasks that do not exist: nope, neither: "
        "remove these names: a task that does not exist is never used"
    )


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"name": " "}, "policy_name_must_not_be_blank"),
        ({"name": "two\nlines"}, "policy_name_must_not_contain_control_characters"),
        ({"name": "default"}, "policy_pkey"),
        *(({"k": value}, "k_must_be_between_1_and_200") for value in (0, 201)),
        *(
            ({"routing_temperature": value}, "routing_temperature_must_be_between_0.0001_and_100")
            for value in (0, -1, 101, NAN, INFINITE)
        ),
        *(
            ({"routing_top_p": value}, "routing_top_p_must_be_between_0.0001_and_1")
            for value in (0, -1, 1.1, NAN, INFINITE)
        ),
        *(({"density": value}, "density_must_be_between_0.0001_and_1") for value in (0, -1, 1.1, NAN, INFINITE)),
        *(
            ({"min_similarity": value}, "min_similarity_must_be_between_minus_1_and_1")
            for value in (-1.1, 1.1, NAN, -INFINITE)
        ),
        *(({"max_adapters": value}, "max_adapters_must_be_between_1_and_64") for value in (0, 65)),
        ({"router": "psychic"}, "router_must_be_a_known_one"),
        ({"weighting": "random"}, "weighting_must_be_similarity_uniform_or_measured"),
        ({"strategy": "svd"}, "strategy_must_be_a_known_one"),
        ({"choice_normalization": "words"}, "choice_normalization_must_be_none_characters_or_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(next(iter(value.values()))),
)
def test_a_policy_is_refused(connection: Connection, columns: dict[str, Any], constraint: str):
    assert refused(connection, "policy", {"name": "mine"} | columns) == constraint
