"""Jobs may ask for text that is drawn: temperature, top_p and a seed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TEMPERATURE = "Of generated text. 0: the most likely token each time; else drawn by softmax(logits / temperature)."


def columns() -> list[sa.Column]:
    """Of job; made anew each time, for a column belongs to one table."""
    return [
        sa.Column(
            "temperature",
            sa.Double(),
            server_default=sa.text("0"),
            nullable=False,
            comment=TEMPERATURE,
        ),
        sa.Column(
            "top_p",
            sa.Double(),
            server_default=sa.text("1"),
            nullable=False,
            comment="Of generated text: drawn from the fewest tokens whose probability reaches this.",
        ),
        sa.Column("seed", sa.BigInteger(), comment="Of generated text that is drawn; null: the job's number."),
    ]


CHECKS = {
    "temperature_must_be_between_0_and_100": "temperature BETWEEN 0 AND 100",
    "top_p_must_be_between_0_0001_and_1": "top_p BETWEEN 0.0001 AND 1",
    "seed_must_not_be_negative": "seed >= 0",
    "choices_are_scored_not_drawn_leave_out_temperature_top_p_seed": (
        "choices IS NULL OR (temperature = 0 AND top_p = 1 AND seed IS NULL)"
    ),
}


def upgrade() -> None:
    for column in columns():
        op.add_column("job", column, schema="loracomp")
    for name, condition in CHECKS.items():
        op.create_check_constraint(name, "job", condition, schema="loracomp")


def downgrade() -> None:
    for name in CHECKS:
        op.drop_constraint(name, "job", schema="loracomp")
    for column in columns():
        op.drop_column("job", column.name, schema="loracomp")
