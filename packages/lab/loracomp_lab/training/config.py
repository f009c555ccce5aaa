"""The validated settings that decide the result of a training run: hyper-parameters, and which rows are used."""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loracomp.errors import UsageError, wrong_fields

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
ENOUGH_ROWS = 640
"""Number of rows seen in training if `epochs` is not given; if a task has fewer rows, each is seen several times."""


class TrainingConfig(BaseModel):
    """Settings for training one LoRA adapter. The same settings, data and seed give the same adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(8, ge=1, le=512, description="Rank r of the factors. Defaults to 8.")
    alpha: float = Field(16.0, gt=0, le=1e6, description="lora_alpha: B A is multiplied by alpha/rank. Defaults to 16.")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        min_length=1,
        description="Linear layers to adapt, each named by the last part of its name. Defaults to q_proj and v_proj.",
    )
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="Layers to adapt, counted from 0 (PEFT's layers_to_transform). Defaults to all."
    )
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Learning rate after the warm-up. Defaults to 2e-3.")
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of the steps used for warm-up. Defaults to 0.06.")
    batch_size: int = Field(16, ge=1, description="Rows in each step. Defaults to 16.")
    epochs: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Number of passes over the rows, up to 1000, which may be a fraction. Defaults to 1; if the task "
        f"has fewer than {ENOUGH_ROWS} rows, to as many passes as it takes to see {ENOUGH_ROWS} rows.",
    )
    max_rows: int | None = Field(
        None, ge=1, description="Maximum number of rows to train on, drawn by seed. Defaults to all."
    )
    max_words: int | None = Field(
        None,
        ge=8,
        description="Maximum number of words of a text; the middle of longer texts is cut out, to save time. "
        "Defaults to no limit.",
    )
    phrased: Share | Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        0.75,
        description="Share of the rows that are written in one of the entry's phrasings, if it has any; the other rows "
        "use the entry's own template. Several values apply to one epoch each, and the last one to all later epochs. "
        "Defaults to 0.75.",
    )
    max_tokens: int = Field(
        512, ge=8, description="Maximum tokens of a prompt with a choice; longer rows are left out. Defaults to 512."
    )
    held_out: int = Field(
        200, ge=0, description="Number of train rows kept aside for scoring, at most a fifth of all. Defaults to 200."
    )
    length_exponent: float = Field(
        0.5,
        ge=0,
        le=1,
        description="The loss compares choices by log-likelihood / tokens^length_exponent: 0 is the sum, 1 the mean. "
        "Defaults to 0.5.",
    )
    lm_weight: float = Field(
        0.1, ge=0, description="Weight of the language-model loss per token of the right choice. Defaults to 0.1."
    )
    unlikelihood: float = Field(
        0.0,
        ge=0,
        description="Weight of the unlikelihood loss per token of the wrong choices (T-Few, arXiv 2205.05638). "
        "Defaults to 0.",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of the choice and order of rows and of the initial factors. Defaults to 0."
    )

    def passes(self, rows: int) -> float:
        """Return the number of passes over this many rows."""
        return self.epochs or max(1.0, ENOUGH_ROWS / rows)

    def phrased_in(self, epoch: int) -> float:
        """Return the share of rows that are written in phrasings in an epoch; epochs are counted from 0."""
        shares = self.phrased if isinstance(self.phrased, tuple) else (self.phrased,)
        return shares[min(epoch, len(shares) - 1)]


def training_config(**settings: Any) -> TrainingConfig:
    """Make a TrainingConfig. Raises UsageError, which names each invalid setting."""
    try:
        return TrainingConfig(**settings)
    except ValidationError as error:
        raise UsageError(f"training settings: {wrong_fields(error)}") from None
