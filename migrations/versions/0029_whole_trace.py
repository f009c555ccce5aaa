"""A trace is one value between route_jobs and record_predictions: its type, with columns of loracomp.prediction."""

from alembic import op

revision = "0029"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
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
            fallback text
        )
        """
    )
    op.execute(
        "COMMENT ON TYPE loracomp.route_trace IS "
        "'What routing decided for a job, as loracomp.prediction stores it: the columns there have the same names.'"
    )


def downgrade() -> None:
    op.execute("DROP TYPE loracomp.route_trace")
