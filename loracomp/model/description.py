"""What is known of a base model without loading it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownBaseModel:
    """What adapters are checked against."""

    name: str
    source: str
    revision: str | None
    fingerprint: str
    """Sha256 in hex of the original weight files (`model.sources.fingerprint`)."""
    modules: dict[str, tuple[int, int]]
    """Every module that an adapter may change: name -> (d_out, d_in). See `loading.adaptable_modules`."""


@dataclass(frozen=True)
class BaseModelDescription(KnownBaseModel):
    """What the database stores about a base model."""

    architecture: str
    context_length: int
    """Most tokens that it can read: prompt and answer together."""
    parameter_count: int
    """Number of parameters; shared (tied) ones count once."""
    has_chat_template: bool
    """Whether its tokenizer has a chat template (`model.chat`)."""
