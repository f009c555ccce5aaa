"""Declarations by which a table gets its answers, the answers, and hints which rows to look at."""

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
    Sequence,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB, OID, REGCLASS

from loracomp.database.tables.columns import (
    NO_STATISTICS,
    SCHEMA,
    TIME,
    RoleName,
    also,
    check,
    index,
    metadata,
    one_of,
    optional,
    references,
    required,
    shallow,
    texts,
)

# A sequence, because a row would leave a dead tuple at each call.
late_answer_seen = Sequence("late_answer_seen", metadata=metadata, schema=SCHEMA, minvalue=0, start=0)
also("COMMENT ON SEQUENCE loracomp.late_answer_seen IS 'The last row of late_answer that was looked at.'")

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
    required("names", texts(), "Names of the table, of `columns` and of `key_columns` when the parts were made."),
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
    optional("sweep", Text, "What a look at all rows does: skip, source or answers; null: none is under way."),
    optional("swept_to", texts(), "Key of the last row that this look has seen."),
    optional("page_job", BigInteger, "Job of the last page; the next page is asked once it is not queued any more."),
    required("looked_from", BigInteger, "The last look has seen what transactions before this one wrote.", default="0"),
    required("hints_from", BigInteger, "Hints of transactions before this one are gone.", default="0"),
    required("looked_at", TIME, "When the last look at all rows began.", default="now()"),
    references("declaration_task_must_exist", "task_id", "loracomp.task.id", ondelete="SET NULL"),
    one_of("sweep", "skip source answers", "sweep_must_be_a_known_one"),
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
    required("status", Text, "asked, answered, refused or failed."),
    optional("reason", Text, "Why it is refused, or failed.", info=NO_STATISTICS),
    optional("job_id", BigInteger, "Job that asks, or has asked; it may have been purged."),
    required("prompt_hash", LargeBinary, "Sha256 of the newest prompt, with choices and round.", info=NO_STATISTICS),
    optional("answer", Text, "The answer; while another is asked, the old one.", info=NO_STATISTICS),
    optional("confidence", Double, "Probability of the best choice."),
    optional("answered_by", Text, "What answered: base, mix, or how many corrections."),
    optional("answered_at", TIME, "When it was answered."),
    required("changed_in", BigInteger, "Transaction that last wrote the outcome; for answers_since.", default="0"),
    optional("correct", Text, "The right answer, as a person says.", info=NO_STATISTICS),
    optional("first_answer", Text, "The answer that stood there then.", info=NO_STATISTICS),
    # No foreign key, because its check would run for each answer.
    optional("example_id", BigInteger, "Example of the declaration's task that the correction made."),
    required("drawn", Boolean, "Whether rows_to_correct drew the row at random.", default="false"),
    optional("visitor", Text, "Who corrects the row: a name that rows_to_correct was given."),
    optional("offered_at", TIME, "When it was given; for ten minutes nobody else gets it."),
    references("an_answer_belongs_to_a_declaration", "declaration_id", "loracomp.declaration.id", ondelete="CASCADE"),
    PrimaryKeyConstraint("declaration_id", "key", name="a_row_has_one_answer"),
    one_of("status", "asked answered refused failed", "answer_status_must_be_a_known_one"),
    index("answer_row_job", "job_id", "job_id IS NOT NULL"),
    index("answer_row_example", "example_id", "example_id IS NOT NULL"),
    index("answer_row_feed", "declaration_id changed_in"),
    # list_answers counts in it, without the rows themselves.
    index("answer_row_progress", "declaration_id status answered_at"),
    index("answer_row_drawn", "declaration_id visitor", "drawn"),
    comment="The answer to each row of a declaration's table. The declaration's view shows it.",
    postgresql_with={"fillfactor": "80"},
)

late_answer = Table(
    "late_answer",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False, comment="The job, which has ended."),
    comment="Jobs whose answer is not in answer_row yet: a session had locked the row. The keeper copies it later.",
)

answer_hint = Table(
    "answer_hint",
    metadata,
    required("declaration_id", Integer, "The declaration.", autoincrement=False),
    required("written_in", BigInteger, "Transaction that wrote it.", default="(pg_current_xact_id())::text::bigint"),
    required("key", texts(), "Key of a row that may have changed; empty: look at all.", info=NO_STATISTICS),
    # No keys: they would be looked up for each row that an application writes.
    index("answer_hint_order", "declaration_id written_in"),
    comment="Rows that were written since the keeper last looked. Triggers append; nothing waits for anything here.",
    # Claims read from the oldest on, past dead rows: vacuum runs early and at full speed.
    postgresql_with={
        "autovacuum_vacuum_scale_factor": "0.01",
        "autovacuum_vacuum_threshold": "1000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)
