"""Row security hides rows, not what EXPLAIN tells of them: counts at an index or a subplan, statistics of words."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

WORDS = {
    "job": {
        "prompt": "text",
        "choices": "text[]",
        "stop": "text[]",
        "idempotency_key": "text",
        "tags": "jsonb",
        "exclude_tasks": "text[]",
        "task": "text",
        "expected": "text",
        "error": "text",
        "lease_token": "bigint",
    },
    "prediction": {"output": "text"},
    "example": {"prompt": "text", "choices": "text[]", "answer": "text"},
}


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
        for column, kind in columns.items():
            op.execute(f"ALTER TABLE loracomp.{table} ALTER {column} SET STATISTICS {target}")
            # What was gathered would stay.
            if op.get_bind().dialect.server_version_info >= (18,):
                op.execute(f"SELECT pg_clear_attribute_stats('loracomp', '{table}', '{column}', false)")
            else:
                # A type drops it; the one that it has rewrites nothing.
                op.execute(f"ALTER TABLE loracomp.{table} ALTER {column} TYPE {kind}")
