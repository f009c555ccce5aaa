"""Embeds texts by the usual kind of sentence-transformers folder, without the package.

Importing sentence-transformers takes a fifth of a worker's start, because it brings scikit-learn and pandas. So a
transformer whose token vectors are averaged and scaled to length 1 runs here; `load_encoder` gives other kinds to the
package.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

USUAL = ["Transformer", "Pooling", "Normalize"]
"""The modules of the usual kind of folder, in order."""


@dataclass(frozen=True)
class MeanOfTokens:
    """A transformer whose token vectors are averaged; stands in for a SentenceTransformer."""

    model: Any
    tokenizer: Any
    max_seq_length: int
    """Tokens after which a text is cut off."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def get_embedding_dimension(self) -> int:
        """Length of the vectors."""
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int, **_: Any) -> npt.NDArray[np.float32]:
        """Unit vectors [len(texts), dimension], in order; `batch_size` texts of like length are embedded together."""
        vectors = np.empty((len(texts), self.get_embedding_dimension()), dtype=np.float32)
        longest_first = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for start in range(0, len(texts), batch_size):
            places = longest_first[start : start + batch_size]
            vectors[places] = self._together([texts[place] for place in places])
        return vectors

    def _together(self, texts: list[str]) -> npt.NDArray[np.float32]:
        limits = {"padding": True, "truncation": True, "max_length": self.max_seq_length}
        tokens = self.tokenizer(texts, return_tensors="pt", **limits).to(self.device)
        states = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
        return unit


def load_mean_of_tokens(folder: Path, device: str) -> MeanOfTokens | None:
    """Load a folder of the usual kind, with weights in float32; None if it is of another kind."""
    max_seq_length = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    if not (max_seq_length and _is_usual(folder)):
        return None
    options = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    return MeanOfTokens(model.to(device).eval().requires_grad_(False), tokenizer, int(max_seq_length))


def _is_usual(folder: Path) -> bool:
    modules = _read(folder / "modules.json", list)
    if [str(module.get("type")).rpartition(".")[2] for module in modules] != USUAL or modules[0].get("path"):
        return False
    pooling = _read(folder / str(modules[1].get("path")) / "config.json")
    modes = {name for name, used in pooling.items() if name.startswith("pooling_mode_") and used}
    lower_case = _read(folder / "sentence_bert_config.json").get("do_lower_case")
    prompt = _read(folder / "config_sentence_transformers.json").get("default_prompt_name")
    return modes == {"pooling_mode_mean_tokens"} and not lower_case and not prompt


def _read(path: Path, kind: type[Any] = dict) -> Any:
    """What a JSON file holds; empty if there is no such file, or if it holds something of another kind."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return value if isinstance(value, kind) else kind()
