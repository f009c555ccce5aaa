"""Jobs that name no policy are answered by the exact weighted sum, and the paper's Linear is a policy of its own.

Linear gives a mix of alike adapters up to n times its strength: docs/evaluation.md has what that costs, and how the
default was chosen. Controls are merged as the default is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LINEAR = """
INSERT INTO loracomp.policy (name, description, router, k, temperature, aggregation, nucleus, top_p, max_adapters,
    min_similarity, weighting, strategy, density, choice_normalization, seed, rescale)
SELECT 'linear', 'As default, merged by Linear, as the paper does.', router, k, temperature, aggregation, nucleus,
    top_p, max_adapters, min_similarity, weighting, 'linear', density, choice_normalization, seed, rescale
FROM loracomp.policy WHERE name = 'default'
ON CONFLICT (name) DO NOTHING
"""
# Of the policies that came with the schema, those whose merge nobody has changed.
SET_STRATEGY = """
UPDATE loracomp.policy SET strategy = '{new}', updated_at = now()
WHERE strategy = '{old}' AND NOT rescale AND name IN ('default', 'uniform', 'random', 'random_parameters')
"""
DESCRIBE = """
UPDATE loracomp.policy SET description = 'Similar examples choose the adapters; {merge}.'
WHERE name = 'default' AND description LIKE 'Similar examples choose the adapters; %'
"""
RENAMED = """
UPDATE loracomp.policy SET description = 'As {other}, scaled to the norm of the exact weighted sum.'
WHERE name = 'linear_rescaled' AND description = 'As {one}, scaled to the norm of the exact weighted sum.'
"""


def upgrade() -> None:
    op.execute(LINEAR)
    set_strategy("linear", "cat")
    op.execute(DESCRIBE.format(merge="their exact weighted sum (cat)"))
    op.execute(RENAMED.format(one="default", other="linear"))


def downgrade() -> None:
    op.execute(RENAMED.format(one="linear", other="default"))
    op.execute(DESCRIBE.format(merge="Linear merge"))
    set_strategy("cat", "linear")
    # Stays where jobs name it.
    op.execute(
        "DELETE FROM loracomp.policy AS p WHERE p.name = 'linear'"
        " AND NOT EXISTS (SELECT 1 FROM loracomp.job AS j WHERE j.policy = p.name)"
    )


def set_strategy(old: str, new: str) -> None:
    """What new policies have, and those that came with the schema."""
    op.alter_column("policy", "strategy", server_default=sa.text(f"'{new}'"), schema="loracomp")
    op.execute(SET_STRATEGY.format(old=old, new=new))
