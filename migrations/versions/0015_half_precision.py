"""Embeddings of examples in half precision: table and index take half the room, and encoders may be twice as wide."""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, Vector

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

LENGTH = """
SELECT atttypmod FROM pg_catalog.pg_attribute
WHERE attrelid = 'loracomp.example_embedding'::regclass AND attname = 'embedding'
"""
COMMENT = "The example as a unit vector, in the encoder's input format."
HALVED = "The example as a unit vector in half precision, in the encoder's input format."


def upgrade() -> None:
    store_as(HALFVEC, "halfvec_cosine_ops", HALVED)
    bound_dimensions(4000)


def downgrade() -> None:
    bound_dimensions(2000)
    store_as(Vector, "vector_cosine_ops", COMMENT)


def store_as(kind: type[HALFVEC | Vector], operators: str, comment: str) -> None:
    """Rewrite the table and build its index again, for vectors as long as they are in this database."""
    length = op.get_bind().scalar(sa.text(LENGTH))
    op.drop_index("example_embedding_hnsw", "example_embedding", schema="loracomp")
    op.alter_column("example_embedding", "embedding", type_=kind(length), comment=comment, schema="loracomp")
    # Again, because a change of type resets the storage.
    op.execute("ALTER TABLE loracomp.example_embedding ALTER COLUMN embedding SET STORAGE PLAIN")
    op.create_index(
        "example_embedding_hnsw",
        "example_embedding",
        ["embedding"],
        schema="loracomp",
        postgresql_using="hnsw",
        postgresql_ops={"embedding": operators},
        postgresql_with={"ef_construction": 400},
    )


def bound_dimensions(most: int) -> None:
    name = "dimensions_must_be_indexable"
    op.drop_constraint(name, "encoder", schema="loracomp")
    op.create_check_constraint(name, "encoder", f"dimensions BETWEEN 1 AND {most}", schema="loracomp")
