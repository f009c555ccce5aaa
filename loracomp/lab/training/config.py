"""What decides a training's result, validated: hyper-parameters, and which rows are learnt from."""

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loracomp.errors import UsageError

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(BaseModel):
    """Hyper-parameters of one LoRA adapter. The same settings, data and seed lead to the same adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1, le=512, description="r of the factors. Defaults to 8.")
    alpha: float = Field(16.0, gt=0, description="lora_alpha; the factors' product counts alpha/rank. Defaults to 16.")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="Linear layers to adapt, by last name. Defaults to q and v."
    )
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="Layers to adapt, counted from 0 (PEFT's layers_to_transform). Defaults to all."
    )
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="Peak, after the warm-up. Defaults to 2e-3.")
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of the steps that warm up. Defaults to 0.06.")
    batch_size: int = Field(16, ge=1, description="Rows a step. Defaults to 16.")
    epochs: float = Field(1.0, gt=0, description="Passes over the rows; may be a fraction. Defaults to 1.")
    max_rows: int | None = Field(None, ge=1, description="Rows to learn from, drawn by seed. Defaults to all.")
    max_words: int | None = Field(
        None, ge=8, description="A longer text of a row loses its middle, so that it costs less. Defaults to no limit."
    )
    phrased: Share | Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        0.75,
        description="Share of the rows that an epoch puts in one of the entry's phrasings, if it has any; the others "
        "keep its own template. Several: one for each epoch, the last for all that follow. Defaults to 0.75.",
    )
    max_tokens: int = Field(512, ge=8, description="Longer rows (prompt and choice) are left out. Defaults to 512.")
    held_out: int = Field(
        200, ge=0, description="Train rows kept for scoring, a fifth of them at most. Defaults to 200."
    )
    length_exponent: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Choices compete by log-likelihood / tokens^this: 0 is their sum, 1 a mean. Defaults to 0.5.",
    )
    lm_weight: float = Field(
        0.1, ge=0, description="Weight of the language-model loss on the right choice, a token. Defaults to 0.1."
    )
    unlikelihood: float = Field(
        0.0,
        ge=0,
        description="Weight of the wrong choices' unlikelihood a token (T-Few, arXiv 2205.05638). Defaults to 0.",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Of the rows drawn, their order and the first factors. Defaults to 0."
    )

    def phrased_in(self, epoch: int) -> float:
        """The share of phrased rows in an epoch, counted from 0."""
        shares = self.phrased if isinstance(self.phrased, tuple) else (self.phrased,)
        return shares[min(epoch, len(shares) - 1)]


def training_config(**settings: Any) -> TrainingConfig:
    """The settings as a TrainingConfig. Raises UsageError that names each one that is wrong."""
    try:
        return TrainingConfig(**settings)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(f"training settings: {wrong}") from None
