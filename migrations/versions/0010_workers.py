"""A registry of workers: who is alive, doing what."""

import sqlalchemy as sa
from alembic import op

from loracomp.database.tables import RoleName

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def count(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"), comment=comment)


def upgrade() -> None:
    op.create_table(
        "worker",
        sa.Column("name", sa.Text(), nullable=False, comment="Name that leases and predictions carry."),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="idle, busy, stopping or stopped, as it said last; worker_status knows who is gone.",
        ),
        sa.Column("host", sa.Text(), nullable=False, comment="Machine that it runs on."),
        sa.Column("pid", sa.Integer(), nullable=False, comment="Its process there."),
        sa.Column("code_version", sa.Text(), nullable=False, comment="Version of loracomp that it runs."),
        sa.Column("base_model", sa.Text(), nullable=False, comment="Base model that it serves."),
        sa.Column("device", sa.Text(), nullable=False, comment="Device and number type, such as cpu/bfloat16."),
        sa.Column(
            "login",
            RoleName(),
            nullable=False,
            server_default=sa.text("session_user"),
            comment="Role that it logged in as.",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
            comment="When it began, by the database's clock.",
        ),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
            comment="When it last reported.",
        ),
        sa.Column("looked_at", sa.DateTime(timezone=True), comment="When it last asked for jobs; null where never."),
        sa.Column(
            "silent_after_s",
            sa.Double(),
            nullable=False,
            comment="Seconds without a report after which it counts as gone.",
        ),
        count("claimed", "Jobs that it has claimed since it began."),
        count("succeeded", "Jobs that it has answered."),
        count("failed", "Failures that it has written, those that are tried again included."),
        count("released", "Jobs that it has given back uncharged."),
        count("dropped", "Results that came after their lease was lost."),
        sa.PrimaryKeyConstraint("name"),
        sa.CheckConstraint(
            "status IN ('idle', 'busy', 'stopping', 'stopped')", name="worker_status_must_be_a_known_one"
        ),
        schema="loracomp",
        comment="Workers as they last reported: who is alive, doing what.",
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    op.drop_table("worker", schema="loracomp")
