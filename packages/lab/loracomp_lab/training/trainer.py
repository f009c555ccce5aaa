"""transformers' Trainer with a loss over choices, and a progress bar."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

from loracomp.model.scoring import log_likelihoods
from loracomp_lab.training.config import TrainingConfig
from loracomp_lab.training.rows import TrainingRow

LOG_STEPS = 10
SAVE_STEPS = 25
"""Steps between checkpoints. A training run that is killed loses at most this many steps, about a minute on two
cores."""
EAGER_TOKENS = 192
"""Rows up to this length use eager attention on a CPU, which is up to twice as fast as SDPA.

Longer rows use SDPA, whose memory does not grow with the square of the length. Forward and backward of one layer in ms,
eager vs. SDPA: 16 rows of 60 tokens 6.6 vs. 12.1; 16 of 120, 20 vs. 30; 8 of 240, 34 vs. 31; 4 of 480, 65 vs. 53.
"""


def choice_loss(scores: Sequence[Tensor], rows: Sequence[TrainingRow], config: TrainingConfig) -> Tensor:
    """Return the mean over rows of: cross-entropy over the choices + lm_weight x the right choice's loss per token.

    With `unlikelihood`, also - unlikelihood x the mean of log(1 - p) over the wrong choices, where p is a choice's mean
    likelihood per token.

    `scores` has the log-likelihoods [choices] of each row's choices in nats, from the scoring used in serving. The
    cross-entropy divides them by tokens^length_exponent. Without a division, long choices would differ by tens of nats,
    and a few rows that can't be learnt would dominate each step. If they were divided by the number of tokens (T-Few,
    arXiv 2205.05638, section 3.2), they would differ by hundredths, and rows that are already right would have the same
    gradient as uncertain ones. The default exponent is 0.5, because a sum of n terms varies with the square root of
    n.
    """
    return torch.stack([_row_loss(score, row, config) for score, row in zip(scores, rows, strict=True)]).mean()


def _row_loss(score: Tensor, row: TrainingRow, config: TrainingConfig) -> Tensor:
    counts = score.new_tensor(row.question.token_counts)
    right = torch.tensor(row.label, device=score.device)
    loss = cross_entropy(score / counts**config.length_exponent, right)
    loss = loss - config.lm_weight * score[row.label] / counts[row.label]
    if config.unlikelihood:
        wrong = torch.arange(len(counts), device=score.device) != right
        loss = loss - config.unlikelihood * torch.log1p(-(score / counts)[wrong].exp().clamp(max=1 - 1e-6)).mean()
    return loss


class ChoiceTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """A Trainer whose batches are lists of training rows, in the order of the dataset."""

    def __init__(self, config: TrainingConfig, model: PeftModel, **kwargs: Any) -> None:
        super().__init__(model=model, data_collator=lambda rows: {"rows": rows}, **kwargs)
        self._config = config

    def compute_loss(self, model: PeftModel, inputs: dict[str, Any], **_: Any) -> Tensor:
        """The loss of one batch (`choice_loss`)."""
        return compute_loss(model, inputs["rows"], self._config)


def compute_loss(model: PeftModel, rows: Sequence[TrainingRow], config: TrainingConfig) -> Tensor:
    """The loss of one batch (`choice_loss`). On a CPU, the attention is used that is faster for rows of this length."""
    if model.device.type == "cpu":
        short = max(row.tokens for row in rows) <= EAGER_TOKENS
        model.base_model.model.set_attn_implementation("eager" if short else "sdpa")
    return choice_loss(log_likelihoods(model, [row.question for row in rows]), rows, config)


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows a progress bar on a terminal; otherwise prints a line for each log."""

    def __init__(self, title: str) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._line = self._progress.add_task(title, total=None, loss="-")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar; a resumed training run starts at its current step."""
        self._progress.update(self._line, total=state.max_steps, completed=state.global_step)
        if self._console.is_terminal:
            self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar by one step."""
        self._progress.update(self._line, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Show the mean loss since the last log."""
        if "loss" not in logs:
            return
        self._progress.update(self._line, loss=f"{float(logs['loss']):.3f}")
        if not self._console.is_terminal:
            self._console.print(f"step {state.global_step}/{state.max_steps} loss {float(logs['loss']):.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the bar, which stays on the screen."""
        self._progress.stop()


def arguments(config: TrainingConfig, rows: int, folder: Path, model: PeftModel) -> TrainingArguments:
    """Return the arguments for Trainer: AdamW, linear warm-up and decay, checkpoints in `folder`, no reports to other
    services.

    With a bfloat16 base model, everything including the adapter is computed in bfloat16 (autocast), as in serving; the
    factors that the optimizer updates are float32.
    """
    size = min(config.batch_size, rows)
    steps = rows // size
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=size,
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(config.warmup * steps),
        weight_decay=0.0,
        seed=config.seed,
        logging_steps=LOG_STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=model.device.type == "cpu",
        bf16=model.base_model.model.dtype == torch.bfloat16,
    )
