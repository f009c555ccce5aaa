"""An encoder to which the database is being changed, beside the present one."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

FORMAT = (
    "Format of the text that it embeds. 1: prompt, newline, choices joined by ' | '. "
    "2: prompt and choices embedded separately, each half of the vector. "
    "3: as 2, with the lengths of prompt and choices and the number of choices."
)


def upgrade() -> None:
    op.create_table(
        "next_encoder",
        sa.Column(
            "id",
            sa.SmallInteger(),
            server_default=sa.text("1"),
            autoincrement=False,
            nullable=False,
            comment="Always 1: a database changes to one encoder at a time.",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Name of the encoder."),
        sa.Column(
            "source",
            sa.Text(),
            nullable=False,
            comment="Where it was loaded from: hub id, folder, or package:NAME of an installed package.",
        ),
        sa.Column("revision", sa.Text(), comment="Revision on the hub; null if the source has none."),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="Sha256 of the original weight files."),
        sa.Column("dimensions", sa.Integer(), nullable=False, comment="Length of the vectors that it makes."),
        sa.Column("input_version", sa.SmallInteger(), server_default=sa.text("1"), nullable=False, comment=FORMAT),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the row was made.",
        ),
        sa.CheckConstraint("id = 1", name="a_database_changes_to_one_encoder_at_a_time"),
        sa.CheckConstraint("dimensions BETWEEN 1 AND 4000", name="dimensions_must_be_indexable"),
        sa.PrimaryKeyConstraint("id"),
        schema="loracomp",
        comment="The encoder to which the database is being changed; its embeddings are in next_embedding, a table made for them.",
    )


def downgrade() -> None:
    op.execute("DROP TABLE IF EXISTS loracomp.next_embedding")
    op.drop_table("next_encoder", schema="loracomp")
