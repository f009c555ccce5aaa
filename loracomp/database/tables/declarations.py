"""Declarations by which a table gets its answers, the answers, and what the keeper still has to do for them."""

from sqlalchemy import (
    ARRAY,
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
)
from sqlalchemy.dialects.postgresql import JSONB, OID, REGCLASS

from loracomp.database.tables.columns import (
    APPENDED_TO,
    NO_STATISTICS,
    THIS_TRANSACTION,
    TIME,
    RoleName,
    check,
    counter,
    index,
    metadata,
    one_of,
    optional,
    references,
    required,
    shallow,
    texts,
)

declaration = Table(
    "declaration",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True, comment="Internal number; people use the view."),
    required("view", REGCLASS, "View with the answers; it has the declaration's name."),
    required("source", REGCLASS, "Table whose rows are answered."),
    required(
        "source_oid", OID, "Its oid; another one after dump and restore, and then columns may have other numbers."
    ),
    required(
        "owner", RoleName(), "Owner of the table: its rows are read, and jobs submitted, with this role's rights."
    ),
    required("prompt", Text, "Template of the prompts, in which {column} stands for a column's value."),
    required(
        "columns", ARRAY(SmallInteger), "Numbers of the columns that the prompt names, then of those of the filter."
    ),
    required("key_columns", ARRAY(SmallInteger), "Numbers of the columns of the primary key."),
    required("names", texts(), "Names of the table, of `columns` and of `key_columns` when the keeper last saw them."),
    required("filter", JSONB, "JSON object: which value as text, or which values, a column has in rows to answer."),
    optional("choices", texts(), "Possible answers; null: text is generated."),
    optional("max_new_tokens", Integer, "Most tokens to generate; 64 by default if there are no choices."),
    required("policy", Text, "Policy of the jobs.", default="'default'"),
    required("priority", Integer, "Priority of the jobs of new rows; rows that were there wait below 0.", default="0"),
    required("tags", JSONB, "Tags of the jobs.", default="'{}'"),
    required("round", Integer, "How often all rows were to be asked again.", default="0"),
    optional("task_id", Integer, "Task whose labelled examples are the corrections."),
    required("paused", Boolean, "Whether nothing is asked until alter_answers says so.", default="false"),
    optional("trouble", Text, "Why nothing could be asked; tried again at retry_at."),
    required("retry_at", TIME, "Before this time nothing is asked.", default="'-infinity'"),
    optional("scan", Text, "What a scan of all rows reads now: rows or answers; null: no scan is under way."),
    required(
        "scan_skips", Boolean, "Whether rows that the scan finds are not asked until they change.", default="false"
    ),
    optional("scan_position", texts(), "Key of the last row that the scan has read; null: none."),
    optional("scan_job", BigInteger, "A job of the scan's last page, which waits until this job is claimed."),
    required("scanned_at", TIME, "When the last scan began.", default="now()"),
    required("hints_from", BigInteger, "Hints of transactions before this one have been handled.", default="0"),
    required("measure_at", TIME, "Before this time no correction is measured.", default="'-infinity'"),
    references("declaration_task_must_exist", "task_id", "loracomp.task.id", ondelete="SET NULL"),
    one_of("scan", "rows answers", "scan_must_be_a_known_one"),
    check("only_a_scan_of_rows_skips", "NOT scan_skips OR scan IS NOT NULL"),
    check("filter_must_be_a_json_object", "jsonb_typeof(filter) = 'object'"),
    shallow("filter"),
    shallow("tags"),
    index("a_view_shows_one_declaration", "view", unique=True),
    comment="Declarations by which a table gets its answers. create_answers makes one.",
)

answer_row = Table(
    "answer_row",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("key", texts(), "Primary key of the row, as texts.", info=NO_STATISTICS),
    required("status", Text, "waiting, answered, refused, failed, or skipped: it was there before the declaration."),
    optional("reason", Text, "Why it is refused, or failed.", info=NO_STATISTICS),
    optional("job_id", BigInteger, "Job that asks, or has asked; it may have been purged."),
    required(
        "earlier_jobs",
        ARRAY(BigInteger),
        "Jobs of earlier prompts, which go with the row.",
        default="'{}'",
        info=NO_STATISTICS,
    ),
    required("prompt_hash", LargeBinary, "Sha256 of the newest prompt, with choices and round.", info=NO_STATISTICS),
    required(
        "uses_corrections", Boolean, "Whether sixteen corrections were measured when the job was made.", default="false"
    ),
    optional("answer", Text, "The answer; while another is asked, the old one.", info=NO_STATISTICS),
    optional("confidence", Double, "Probability of the best choice."),
    optional("answered_by", Text, "What answered: base, mix or corrections."),
    optional("corrections", Integer, "How many corrections answered; null if they did not."),
    optional("answered_at", TIME, "When it was answered."),
    required("changed_in", BigInteger, "Transaction that last wrote the outcome; for answers_since.", default="0"),
    optional("correct", Text, "The right answer, as a person says.", info=NO_STATISTICS),
    optional("first_answer", Text, "The first answer to the corrected prompt without corrections.", info=NO_STATISTICS),
    # No foreign key, because its check would run for each answer.
    optional("example_id", BigInteger, "Example of the declaration's task that the correction made."),
    required("drawn", Boolean, "Whether rows_to_correct drew the row at random.", default="false"),
    optional("visitor", Text, "Who corrects the row: a name that rows_to_correct was given."),
    optional("offered_at", TIME, "When it was given; for ten minutes nobody else gets it."),
    references("an_answer_belongs_to_a_declaration", "declaration_id", "loracomp.declaration.id", ondelete="CASCADE"),
    PrimaryKeyConstraint("declaration_id", "key", name="a_row_has_one_answer"),
    one_of("status", "waiting answered refused failed skipped", "answer_status_must_be_a_known_one"),
    one_of("answered_by", "base mix corrections", "answered_by_must_be_a_known_one"),
    check(
        "corrections_are_counted_if_they_answered",
        "(corrections IS NULL) = (answered_by IS DISTINCT FROM 'corrections')",
    ),
    index("answer_row_job", "job_id", "job_id IS NOT NULL"),
    index("answer_row_example", "example_id", "example_id IS NOT NULL"),
    index(
        "answer_row_to_ask_again",
        "declaration_id",
        "example_id IS NOT NULL AND job_id IS NOT NULL AND NOT uses_corrections",
    ),
    index("answer_row_feed", "declaration_id changed_in"),
    # list_answers counts in it, without the rows themselves.
    index("answer_row_progress", "declaration_id status answered_at"),
    index("answer_row_drawn", "declaration_id visitor", "drawn"),
    comment="The answer to each row of a declaration's table. The declaration's view shows it.",
    postgresql_with={"fillfactor": "80"},
)

answer_hint = Table(
    "answer_hint",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("written_in", BigInteger, "Transaction that wrote the row.", default=THIS_TRANSACTION),
    required("key", texts(), "Key of a row that may have changed.", info=NO_STATISTICS),
    index("answer_hint_order", "declaration_id written_in"),
    index("answer_hint_key", "declaration_id key"),
    comment="Rows of declared tables that were written and are still to be asked. Triggers on the tables append.",
    postgresql_with=APPENDED_TO,
)

scan_request = Table(
    "scan_request",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("not_before", BigInteger, "The scan begins once no transaction up to this one is running.", default="0"),
    index("scan_request_declaration", "declaration_id"),
    comment="Scans of all rows that are to be made, because the table was emptied or hints could not be written.",
    postgresql_with=APPENDED_TO,
)

# A sequence, because a row would leave a dead tuple each time.
ended_jobs_from = counter("ended_jobs_from", "Transaction from which on take_answers reads ended_job.")
