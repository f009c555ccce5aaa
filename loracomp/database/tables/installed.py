"""Which files of sql/ this database has."""

from sqlalchemy import DateTime, Integer, Table, Text, text

from loracomp.database.tables.columns import metadata, required, texts

sql_object = Table(
    "sql_object",
    metadata,
    required("path", Text, "File under sql/.", primary_key=True),
    required(
        "position", Integer, "Position in the order in which files are applied; objects are dropped in reverse order."
    ),
    required("drops", texts(), "Statements that drop the objects that the file created."),
    required("checksum", Text, "Sha256 of the file when it was applied."),
    required("applied_at", DateTime(timezone=True), "When the file was applied.", server_default=text("now()")),
    comment="Files of sql/ that were applied to this database.",
)
