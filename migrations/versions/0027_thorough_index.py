"""The index of embeddings is built with more care: some of what lies in clusters, as tasks do, was not found."""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

# It may be away: `drop_embedding_index` before a large import. What builds it again has the setting.
REBUILD = """
DO $$
BEGIN
    IF to_regclass('loracomp.example_embedding_hnsw') IS NOT NULL THEN
        ALTER INDEX loracomp.example_embedding_hnsw {change};
        REINDEX INDEX loracomp.example_embedding_hnsw;
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(REBUILD.format(change="SET (ef_construction = 400)"))


def downgrade() -> None:
    op.execute(REBUILD.format(change="RESET (ef_construction)"))
