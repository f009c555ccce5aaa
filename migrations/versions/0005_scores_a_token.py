"""Policies divide a choice's log-likelihood by its tokens unless they say otherwise: docs/evaluation.md has why."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Of the policies that came with the schema, those whose scoring nobody has changed.
SET_NORMALIZATION = """
UPDATE loracomp.policy SET choice_normalization = '{new}'
WHERE choice_normalization = '{old}'
    AND name IN ('default', 'cat', 'ties', 'magnitude_prune', 'dare_linear', 'dare_ties', 'nearest', 'uniform', 'base',
        'own_task', 'random', 'random_parameters', 'linear_rescaled', 'ties_rescaled', 'magnitude_prune_rescaled')
"""


def upgrade() -> None:
    set_normalization("none", "tokens")


def downgrade() -> None:
    set_normalization("tokens", "none")


def set_normalization(old: str, new: str) -> None:
    """What new policies have, and those that came with the schema."""
    op.alter_column("policy", "choice_normalization", server_default=sa.text(f"'{new}'"), schema="loracomp")
    op.execute(SET_NORMALIZATION.format(old=old, new=new))
