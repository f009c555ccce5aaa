"""An embedding also holds how long a prompt and its choices are, and how many: input version 3."""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

INPUT_VERSION = (
    "What it is shown. 1: prompt, then a newline and the choices joined by ' | '. "
    "2: prompt and choices apart, each half of the vector."
)
INPUT_VERSION_WITH_SHAPE = INPUT_VERSION + " 3: the same, and how long and how many they are."

# A database that has an encoder keeps its vectors, and their version, until `loracomp encoder set`.
RESIZE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM loracomp.encoder) AND NOT EXISTS (SELECT FROM loracomp.example_embedding) THEN
        ALTER TABLE loracomp.example_embedding
            ALTER COLUMN embedding TYPE public.vector({dimensions}), ALTER COLUMN embedding SET STORAGE PLAIN;
    END IF;
END
$$
"""


def upgrade() -> None:
    op.alter_column("encoder", "input_version", comment=INPUT_VERSION_WITH_SHAPE, schema="loracomp")
    op.execute(RESIZE.format(dimensions=832))


def downgrade() -> None:
    op.alter_column("encoder", "input_version", comment=INPUT_VERSION, schema="loracomp")
    op.execute(RESIZE.format(dimensions=768))
