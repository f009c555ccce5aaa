"""Policies may rescale what they merge: Linear gives up to n times the strength of n alike adapters."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SEEDED = """
INSERT INTO loracomp.policy (name, description, router, weighting, strategy, max_adapters, rescale) VALUES
('linear_rescaled', 'As default, scaled to the norm of the exact weighted sum.',
 'retrieval', 'similarity', 'linear', 8, TRUE),
('ties_rescaled', 'As ties, scaled to the norm of the exact weighted sum.',
 'retrieval', 'similarity', 'ties', 8, TRUE),
('magnitude_prune_rescaled', 'As magnitude_prune, scaled to the norm of the exact weighted sum.',
 'retrieval', 'similarity', 'magnitude_prune', 8, TRUE)
ON CONFLICT (name) DO NOTHING
"""


def upgrade() -> None:
    op.add_column(
        "policy",
        sa.Column(
            "rescale",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether the merged change is scaled to the norm of the exact weighted sum.",
        ),
        schema="loracomp",
    )
    op.execute(SEEDED)


def downgrade() -> None:
    # Those that jobs name stay, and merge without rescaling.
    op.execute(
        "DELETE FROM loracomp.policy AS p WHERE p.rescale"
        " AND NOT EXISTS (SELECT 1 FROM loracomp.job AS j WHERE j.policy = p.name)"
    )
    op.drop_column("policy", "rescale", schema="loracomp")
