"""Principal axes, by whose coordinates routing searches a very large database."""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "principal_axis",
        sa.Column(
            "place", sa.SmallInteger(), autoincrement=False, nullable=False, comment="Place of the axis, from 1."
        ),
        sa.Column("axis", HALFVEC(), nullable=False, comment="Unit vector, at right angles to the other axes."),
        sa.PrimaryKeyConstraint("place"),
        schema="loracomp",
        comment="Axes in whose directions the embeddings differ most; none unless there are very many embeddings.",
    )
    op.create_table(
        "reduced_embedding",
        sa.Column("example_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The example."),
        sa.Column(
            "task_id", sa.Integer(), nullable=False, comment="Task of the example; a copy, as in example_embedding."
        ),
        sa.Column(
            "embedding",
            HALFVEC(256),
            nullable=False,
            comment="Coordinates of the example's embedding on the principal axes.",
        ),
        sa.PrimaryKeyConstraint("example_id"),
        schema="loracomp",
        comment="Embeddings in fewer dimensions, by which routing finds candidates; empty if there are no principal axes.",
    )
    op.create_index("reduced_embedding_task", "reduced_embedding", ["task_id"], schema="loracomp")
    # The default would store longer vectors outside their rows.
    op.execute("ALTER TABLE loracomp.principal_axis ALTER COLUMN axis SET STORAGE PLAIN")


def downgrade() -> None:
    op.execute(WHOLE_EMBEDDINGS)  # indexed again, if coordinates were
    op.drop_table("reduced_embedding", schema="loracomp")
    op.drop_table("principal_axis", schema="loracomp")


WHOLE_EMBEDDINGS = """
CREATE INDEX IF NOT EXISTS example_embedding_hnsw ON loracomp.example_embedding
USING hnsw (embedding halfvec_cosine_ops) WITH (ef_construction = 400)
"""
