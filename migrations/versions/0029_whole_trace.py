"""A trace is one value from route_jobs to record_predictions; min_share of policies; eligible_task_count of traces.

Attributes of the type are columns of loracomp.prediction, by name and type.
"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

TRACE = """
CREATE TYPE loracomp.route_trace AS (
    query_embedding public.halfvec,
    example_ids bigint[],
    example_tasks text[],
    similarities double precision[],
    tasks text[],
    probabilities double precision[],
    weights double precision[],
    composed_tasks text[],
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[],
    policy jsonb,
    fallback text,
    eligible_task_count integer
);
COMMENT ON TYPE loracomp.route_trace IS
'What routing decided for a job: columns of loracomp.prediction, which holds it. Of workers'' own use.'
"""


def upgrade() -> None:
    op.add_column(
        "policy",
        sa.Column(
            "min_share",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment="A task whose weight would be less is left out, and the others share it; "
            "the most probable always stays.",
        ),
        schema="loracomp",
    )
    op.create_check_constraint(
        "min_share_must_be_between_0_and_1", "policy", "min_share BETWEEN 0 AND 1", schema="loracomp"
    )
    op.add_column(
        "prediction",
        sa.Column(
            "eligible_task_count",
            sa.Integer(),
            nullable=True,
            comment="Tasks that the job might have retrieved; null in traces older than the column.",
        ),
        schema="loracomp",
    )
    op.execute(TRACE)


def downgrade() -> None:
    op.execute("DROP TYPE loracomp.route_trace")
    op.drop_column("prediction", "eligible_task_count", schema="loracomp")
    op.drop_column("policy", "min_share", schema="loracomp")
