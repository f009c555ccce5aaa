"""Numbers and digests of traces are not compressed in vain: they don't get shorter."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

COLUMNS = (
    "choice_scores",
    "similarities",
    "probabilities",
    "weights",
    "adapter_sha256",
    "adapter_weights",
    "composition_digest",
    "base_fingerprint",
)


def upgrade() -> None:
    _store("EXTERNAL")


def downgrade() -> None:
    _store("EXTENDED")


def _store(storage: str) -> None:
    # Rows that are there stay as they are.
    for column in COLUMNS:
        op.execute(f"ALTER TABLE loracomp.prediction ALTER COLUMN {column} SET STORAGE {storage}")
