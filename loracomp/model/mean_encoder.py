"""Encoders of the most frequent form: a vector is the mean of a transformer's outputs for the tokens of a text.

They are computed here, as by sentence-transformers, because importing that takes a third of a worker's start.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class MeanEncoder:
    """A transformer and its tokenizer, which cuts texts off after `max_seq_length` tokens."""

    transformer: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return torch.device(self.transformer.device)

    def get_embedding_dimension(self) -> int:
        """Length of a text's vector."""
        return int(self.transformer.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int, **_: Any) -> npt.NDArray[np.float32]:
        """Unit vectors [n, dimensions] of n texts, in order."""
        order = np.argsort([-len(text) for text in texts])
        batches = [[texts[at] for at in order[start:][:batch_size]] for start in range(0, len(texts), batch_size)]
        vectors = torch.cat([self._embed(batch) for batch in batches])
        found: npt.NDArray[np.float32] = vectors[np.argsort(order)].cpu().numpy()
        return found

    def _embed(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt"
        ).to(self.device)
        outputs = self.transformer(**tokens).last_hidden_state  # [n, tokens, dimensions]
        mask = tokens["attention_mask"].unsqueeze(-1).to(outputs.dtype)
        summed = (outputs * mask).sum(dim=1, dtype=torch.float32)
        means = summed / mask.sum(dim=1, dtype=torch.float32).clamp(min=1e-9)
        return torch.nn.functional.normalize(means.to(outputs.dtype).float(), dim=1)


def load_mean_encoder(folder: Path, device: str) -> MeanEncoder | None:
    """Load a sentence-transformers folder, with weights in float32; None if it is of another form."""
    if (most := _most_tokens(folder)) is None:
        return None
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    transformer = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
    return MeanEncoder(transformer.to(device).eval(), AutoTokenizer.from_pretrained(folder, **options), most)


def _most_tokens(folder: Path) -> int | None:
    """The most tokens of a text, if the folder's settings say no more than what is computed here."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        modules = _read(folder / "modules.json")
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        text = _read(folder / "sentence_bert_config.json")
        pooling = _read(folder / modules[1]["path"] / "config.json")
        modes = [name for name, used in pooling.items() if name.startswith("pooling_mode") and used]
        prompt = _read(folder / "config_sentence_transformers.json").get("default_prompt_name")
        usual = kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        cased = set(text) == {"max_seq_length", "do_lower_case"} and not text["do_lower_case"]
        if usual and cased and modes == ["pooling_mode_mean_tokens"] and not prompt and not modules[0]["path"]:
            return int(text["max_seq_length"])
    return None


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
