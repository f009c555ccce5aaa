"""A measurement says whether the prompt was in the chat template, so that a changed policy measures again.

Also rewrites some columns' comments: job.claimed_together counts the jobs of earlier claims too, and views inherit the
others.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COMMENTS = {
    "job.claimed_together": "Number of jobs that its worker held after the claim, from earlier claims too. If 1, it is alone: an expired lease then counts as an attempt.",
    "job.evaluation": "Name of the evaluation that the job belongs to; null for other jobs.",
    "job.policy": "Name of the policy: the settings of routing and merging.",
    "task.family": "Family of the task, such as nli; for reports.",
    "prediction.norm_ratio": "Norm of the merged weight change divided by that of the exact weighted sum; 1 means equal; null for the base model alone.",
    "prediction.cosine": "Cosine between the merged weight change and the exact weighted sum; 1: the same direction; null for the base model alone.",
    "prediction.batch_size": "Number of jobs that were answered together.",
    "prediction.timings": "Milliseconds that each step took for the job's whole batch: claim, encode, route, load (adapters to the device), ready (waiting for the model), compose, predict, record.",
}


def upgrade() -> None:
    op.add_column(
        "measurement",
        sa.Column(
            "chat_template",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Whether the prompt stood in the base model's chat template.",
        ),
        schema="loracomp",
    )
    # What the default policy did until now.
    op.execute(
        "UPDATE loracomp.measurement AS m SET chat_template = true FROM loracomp.example AS e, loracomp.base_model AS b"
        " WHERE e.id = m.example_id AND e.choices IS NULL AND b.id = m.base_model_id AND b.has_chat_template"
    )
    for column, comment in COMMENTS.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN loracomp.{column} IS '{quoted}'")


def downgrade() -> None:
    op.drop_column("measurement", "chat_template", schema="loracomp")
