"""The encoder is shown prompt and choices apart, in vectors twice as long, and routing's defaults fit that."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INPUT_VERSION = "What it is shown. 1: prompt, then a newline and the choices joined by ' | '."
INPUT_VERSION_WITH_VIEWS = INPUT_VERSION + " 2: prompt and choices apart, each half of the vector."

# A database that has an encoder keeps its vectors until `loracomp encoder set`; any other gets the default's length.
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

# Of the policies that came with the schema, those whose routing nobody has changed.
SET_ROUTING = """
UPDATE loracomp.policy SET k = {new[0]}, top_p = {new[1]}
WHERE (k, top_p, temperature, aggregation, nucleus) = ({old[0]}, {old[1]}, 0.1, 'softmax_sum', 'tasks')
    AND name IN ('default', 'cat', 'ties', 'magnitude_prune', 'dare_linear', 'dare_ties', 'nearest', 'uniform', 'base',
        'own_task', 'random', 'random_parameters', 'linear_rescaled', 'ties_rescaled', 'magnitude_prune_rescaled')
"""
OLD, NEW = (20, 0.9), (30, 0.95)
"""k and top_p."""


def upgrade() -> None:
    op.alter_column("encoder", "input_version", comment=INPUT_VERSION_WITH_VIEWS, schema="loracomp")
    set_routing(OLD, NEW)
    op.execute(RESIZE.format(dimensions=768))


def downgrade() -> None:
    op.alter_column("encoder", "input_version", comment=INPUT_VERSION, schema="loracomp")
    set_routing(NEW, OLD)
    op.execute(RESIZE.format(dimensions=384))


def set_routing(old: tuple[int, float], new: tuple[int, float]) -> None:
    """What new policies have, and those that came with the schema."""
    for column, value in zip(("k", "top_p"), new, strict=True):
        op.alter_column("policy", column, server_default=sa.text(str(value)), schema="loracomp")
    op.execute(SET_ROUTING.format(old=old, new=new))
