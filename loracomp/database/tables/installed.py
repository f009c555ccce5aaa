"""The files of sql/ that were applied to this database."""

from sqlalchemy import Integer, Table, Text

from loracomp.database.tables.columns import TIME, metadata, required, texts

sql_object = Table(
    "sql_object",
    metadata,
    required("path", Text, "File under sql/.", primary_key=True),
    required(
        "position", Integer, "Position in the order in which files are applied; objects are dropped in reverse order."
    ),
    required("drops", texts(), "Statements that drop the objects that the file created."),
    required("checksum", Text, "Sha256 of the file when it was applied."),
    required("applied_at", TIME, "When the file was applied.", default="now()"),
    comment="Files of sql/ that were applied to this database.",
)
