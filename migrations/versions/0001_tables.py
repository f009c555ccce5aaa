"""Creates the tables as loracomp/database/tables describes them.

Until 1.0 is tagged, a change of a table needs no migration. At the tag, the statements are written out here, so that
this file imports nothing that may change.
"""

from itertools import groupby
from typing import Any

from alembic import op
from sqlalchemy import create_mock_engine
from sqlalchemy.schema import CreateIndex, SetConstraintComment

from loracomp.database.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    made: list[Any] = []
    engine = create_mock_engine("postgresql+psycopg://", lambda statement, *_: made.append(statement))
    metadata.create_all(engine, checkfirst=False)
    for kind, statements in groupby(made, type):
        # SQLAlchemy keeps indexes and constraints in sets, so their order would differ each time.
        in_sets = kind in (CreateIndex, SetConstraintComment)
        for statement in sorted(statements, key=lambda each: each.element.name) if in_sets else statements:
            op.execute(statement)
