"""What EXPLAIN tells of rows that row security hides: counts at an index or a subplan, and statistics of others' words."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

WORDS = {
    "job": (
        "prompt", "choices", "stop", "idempotency_key", "tags", "exclude_tasks", "task", "expected", "error",
        "lease_token",
    ),
    "prediction": ("output",),
    "example": ("prompt", "choices", "answer"),
}  # fmt: skip


def upgrade() -> None:
    op.add_column(
        "prediction",
        sa.Column("submitted_by", sa.Text(), comment="Who submitted the job, and so may see this row."),
        schema="loracomp",
    )
    op.execute(
        "UPDATE loracomp.prediction AS p SET submitted_by = j.submitted_by FROM loracomp.job AS j WHERE j.id = p.job_id"
    )
    # Of a job that is gone: nobody's.
    op.execute("UPDATE loracomp.prediction SET submitted_by = '' WHERE submitted_by IS NULL")
    op.alter_column("prediction", "submitted_by", nullable=False, schema="loracomp")
    _index_evaluations("evaluation")
    _keep_statistics("0")


def downgrade() -> None:
    op.drop_column("prediction", "submitted_by", schema="loracomp")
    _index_evaluations("evaluation", "task")
    _keep_statistics("-1")


def _index_evaluations(*columns: str) -> None:
    op.drop_index("job_evaluation", "job", schema="loracomp")
    condition = sa.text("evaluation IS NOT NULL")
    op.create_index("job_evaluation", "job", list(columns), schema="loracomp", postgresql_where=condition)


def _keep_statistics(target: str) -> None:
    for table, columns in WORDS.items():
        for column in columns:
            op.execute(f"ALTER TABLE loracomp.{table} ALTER COLUMN {column} SET STATISTICS {target}")
            # What was gathered stays otherwise. Before PostgreSQL 18 a new type drops it; the same one rewrites nothing.
            op.execute(
                f"""
                DO $$
                BEGIN
                    IF to_regproc('pg_catalog.pg_clear_attribute_stats') IS NOT NULL THEN
                        PERFORM pg_clear_attribute_stats('loracomp', '{table}', '{column}', false);
                    ELSE
                        EXECUTE (
                            SELECT format('ALTER TABLE loracomp.{table} ALTER {column} TYPE %s', format_type(atttypid, atttypmod))
                            FROM pg_attribute
                            WHERE attrelid = 'loracomp.{table}'::regclass AND attname = '{column}'
                        );
                    END IF;
                END
                $$
                """
            )
