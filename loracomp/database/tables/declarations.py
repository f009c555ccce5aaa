"""Declarations (each says that a table's rows get answers), the answers, and the keeper's remaining work for them."""

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
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS

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
    required("view", REGCLASS, "View that shows the answers; its name is the declaration's name."),
    required(
        "view_definition",
        Text,
        "Definition and options of the view as loracomp made it. If its owner has changed them, only the owner may "
        "call answers_since.",
    ),
    required("source", REGCLASS, "Table whose rows are answered."),
    required(
        "source_identity",
        Text,
        "Server, database and oid of the table (identity_of). If they are others now, the database was restored from a "
        "dump, and columns and transactions may have other numbers than before.",
    ),
    required(
        "owner",
        RoleName(),
        "Owner of the table. Rows are read with this role's rights, and jobs are submitted in its name.",
    ),
    required("owners_number", SmallInteger, "A number from 1 to 500 that no other declaration of this owner has."),
    required("prompt", Text, "Template of the prompts, in which {column} stands for a column's value."),
    required("columns", ARRAY(SmallInteger), "Numbers of the columns in the prompt, followed by those in the filter."),
    required("key_columns", ARRAY(SmallInteger), "Numbers of the columns of the primary key."),
    required("names", texts(), "Names of the table, of `columns` and of `key_columns`, as the keeper last saw them."),
    required(
        "filter",
        JSONB,
        "JSON object that says which rows are answered: for each column, the value or the list of values allowed.",
    ),
    optional("choices", texts(), "Possible answers; null: text is generated."),
    optional("descriptions", texts(), "What each of the choices means; null: they are not described."),
    optional(
        "max_new_tokens", Integer, "Maximum number of tokens to generate; defaults to 64 if there are no choices."
    ),
    required("policy", Text, "Policy of the jobs.", default="'default'"),
    required(
        "priority",
        Integer,
        "Priority of the jobs of new rows; jobs of existing rows have a priority below 0.",
        default="0",
    ),
    required("tags", JSONB, "Tags of the jobs.", default="'{}'"),
    optional("certain", Double, "Share of right answers that the view's column certain promises; null: none."),
    optional("certain_of", texts(), "Choices to which the promise applies, to each by itself; null: to all answers."),
    required("round", Integer, "How many times alter_answers had all rows answered again.", default="0"),
    required(
        "stale_to_job",
        BigInteger,
        "Last job before alter_answers changed what is asked, until the scan has seen all rows. Answers of this and "
        "earlier jobs are stale. Otherwise 0.",
        default="0",
    ),
    optional("task_id", Integer, "Task whose labelled examples are the corrections."),
    required("paused", Boolean, "Whether the keeper makes no jobs of the rows for now.", default="false"),
    optional("trouble", Text, "Why no jobs could be made of the rows; the keeper tries again at retry_at."),
    required("retry_at", TIME, "No jobs are made of the rows before this time.", default="'-infinity'"),
    optional("scan", Text, "What the full scan is reading now: rows or answers; null: no scan is running."),
    required("is_first_scan", Boolean, "Whether the scan is the first one.", default="false"),
    required(
        "backfill", Boolean, "Whether scans also ask rows that were there before the declaration.", default="true"
    ),
    optional("scan_position", texts(), "Key of the last row that the scan has read; null: none yet."),
    required("scan_rows", BigInteger, "Number of rows, and then of answers, that the scan has read.", default="0"),
    optional("scan_job", BigInteger, "A job from the scan's last page. The next page waits until this job is claimed."),
    required(
        "waits_until",
        TIME,
        "The scan begins once all corrections are measured, and at this time at the latest.",
        default="'-infinity'",
    ),
    optional(
        "scan_after",
        BigInteger,
        "Open transactions may not have noted rows, because alter_answers has added a column or loracomp was upgraded. "
        "The scan begins once the transactions before this one that have written to the table have ended. Until then, "
        "the rows that they have noted wait too. 0: the keeper has not seen the declaration since; null: the scan "
        "waits for no transaction.",
    ),
    required("scanned_at", TIME, "When the last scan began.", default="now()"),
    optional(
        "parts",
        BigInteger,
        "Hash of the partitions that the table had when the last scan began; null: it is not partitioned.",
    ),
    required("parts_at", TIME, "When the keeper last compared the table's partitions with these.", default="now()"),
    required("hints_from", BigInteger, "All hints of transactions before this one are handled.", default="0"),
    required("measure_at", TIME, "No correction is measured before this time.", default="'-infinity'"),
    references("declaration_task_must_exist", "task_id", "loracomp.task.id", ondelete="SET NULL"),
    one_of("scan", "rows answers", "scan_must_be_a_known_one"),
    check("filter_must_be_a_json_object", "jsonb_typeof(filter) = 'object'"),
    check("certain_must_be_from_half_to_99_percent", "certain BETWEEN 0.5 AND 0.99"),
    shallow("filter"),
    shallow("tags"),
    check("a_role_has_at_most_500_declarations", "owners_number BETWEEN 1 AND 500"),
    index("a_view_shows_one_declaration", "view", unique=True),
    index("another_declaration_was_made_meanwhile_try_again", "owner owners_number", unique=True),
    comment="Declarations. Each says that the rows of a table get answers. create_answers adds one.",
)

answer_row = Table(
    "answer_row",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("key", texts(), "Primary key of the row, each column as text.", info=NO_STATISTICS),
    required(
        "status",
        Text,
        "waiting, answered, refused, failed, or skipped (the row was there before a declaration without backfill).",
    ),
    optional("reason", Text, "Why the row is refused or skipped, or why its job failed.", info=NO_STATISTICS),
    optional("job_id", BigInteger, "The row's newest job; it may have been purged."),
    required(
        "earlier_jobs",
        ARRAY(BigInteger),
        "Jobs of earlier prompts; they are deleted with the row.",
        default="'{}'",
        info=NO_STATISTICS,
    ),
    required(
        "prompt_hash",
        LargeBinary,
        "SHA-256 of the newest prompt with its choices, descriptions, length and round.",
        info=NO_STATISTICS,
    ),
    required("uses_corrections", Boolean, "Whether corrections were used for the newest job.", default="false"),
    optional("answer", Text, "The answer; the old one while a new one is on its way.", info=NO_STATISTICS),
    optional("confidence", Double, "Probability of the chosen answer, from 0 to 1."),
    optional("answered_by", Text, "What answered: base, mix or corrections."),
    optional(
        "setup",
        BigInteger,
        "Hash of the base model, the encoder, the policy's settings, and whether corrections were used. Answers with "
        "one setup can be compared. Null if an adapter that was trained on the corrections took part, or if the row's "
        "own correction helped to choose the adapters.",
    ),
    optional("corrections", Integer, "How many corrections were used for the answer; null: none."),
    optional("answered_at", TIME, "When it was answered."),
    required(
        "changed_in", BigInteger, "Transaction that last wrote the outcome. answers_since orders by it.", default="0"
    ),
    optional("correct", Text, "The right answer, as a person corrected it.", info=NO_STATISTICS),
    optional(
        "first_answer",
        Text,
        "First answer to the corrected prompt that was given without corrections.",
        info=NO_STATISTICS,
    ),
    # No foreign key, because it would be checked at each answer.
    optional("example_id", BigInteger, "Labelled example that was made from the correction."),
    optional(
        "draw_number",
        BigInteger,
        "Place of the row in the order in which rows_to_correct drew rows at random; null: it was not drawn.",
    ),
    optional("visitor", Text, "Visitor whom rows_to_correct gave the row."),
    optional("offered_at", TIME, "When the visitor got the row. Nobody else gets it for ten minutes."),
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
    # All rows are in these two. They have conditions so that Postgres doesn't look a single row up in them, which would
    # read all rows of the declaration: before the first ANALYZE it takes them for as good as the primary key.
    index("answer_row_feed", "declaration_id changed_in", "changed_in IS NOT NULL"),
    # list_answers counts in it, without the rows themselves.
    index("answer_row_progress", "declaration_id status answered_at", "status IS NOT NULL"),
    index("answer_row_drawn", "declaration_id draw_number", "draw_number IS NOT NULL"),
    comment="Answers to the rows of declared tables. Each declaration's view shows its own.",
    postgresql_with={"fillfactor": "80"},
)

answer_hint = Table(
    "answer_hint",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("written_in", BigInteger, "Transaction that wrote the row of the table.", default=THIS_TRANSACTION),
    required("key", texts(), "Key of a row that may have changed.", info=NO_STATISTICS),
    index("answer_hint_order", "declaration_id written_in"),
    index("answer_hint_key", "declaration_id key"),
    comment="Rows of declared tables that were written, and that the keeper has not read since. Triggers on the tables "
    "insert them.",
    postgresql_with=APPENDED_TO,
)

withdrawn_example = Table(
    "withdrawn_example",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("example_id", BigInteger, "Example that one of its rows had.", autoincrement=False),
    index("withdrawn_example_declaration", "declaration_id"),
    comment="Examples of corrections that were withdrawn or replaced, or whose rows were deleted. The keeper deletes "
    "those that no row has any more.",
    postgresql_with=APPENDED_TO,
)

scan_request = Table(
    "scan_request",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("not_before", BigInteger, "The scan begins when all transactions up to this one have ended.", default="0"),
    index("scan_request_declaration", "declaration_id"),
    comment="Requests for a full scan, made because a table was truncated or hints could not be written.",
    postgresql_with=APPENDED_TO,
)

# A sequence, because updating a row would leave a dead tuple each time.
ended_jobs_from = counter("ended_jobs_from", "take_answers reads ended_job from this transaction on.")
drawn_rows = counter("drawn_rows", "rows_to_correct numbers the rows that it draws, of all declarations together.")
