"""Policies may contrast a mix with the base model: what it likes anyway says nothing of the question."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

SEEDED = """
INSERT INTO loracomp.policy (name, description, router, strategy, max_adapters, contrast) VALUES
('contrast', 'As default, less 0.3 of what the base model gives each choice.', 'retrieval', 'cat', 8, 0.3),
('nearest_contrast', 'As nearest, less 0.3 of what the base model gives each choice.', 'retrieval', 'cat', 1, 0.3),
('own_task_contrast', 'Control: as own_task, less 0.3 of what the base model gives each choice.',
 'own_task', 'cat', 8, 0.3)
ON CONFLICT (name) DO NOTHING
"""


def upgrade() -> None:
    op.add_column(
        "policy",
        sa.Column(
            "contrast",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="How many times the base model's log-likelihood of a choice is taken off the mix's; "
            "0 asks the mix alone.",
        ),
        schema="loracomp",
    )
    op.create_check_constraint(
        "contrast_must_be_between_0_and_1", "policy", "contrast BETWEEN 0 AND 1", schema="loracomp"
    )
    op.execute(SEEDED)


def downgrade() -> None:
    # Those that jobs name stay, and ask the mix alone.
    op.execute(
        "DELETE FROM loracomp.policy AS p WHERE p.contrast > 0"
        " AND NOT EXISTS (SELECT 1 FROM loracomp.job AS j WHERE j.policy = p.name)"
    )
    op.drop_column("policy", "contrast", schema="loracomp")
