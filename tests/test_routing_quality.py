"""The benchmark of routing computes cosines part by part: they must be those that the encoder's vectors have."""

import numpy as np
import pytest

from benchmarks.routing_quality import Embedder, Index, Query, Similarities
from loracomp.registry.library_files import PACKAGED, read_examples_file
from loracomp.registry.models import load_encoder

pytestmark = pytest.mark.model


def test_similarities_are_the_vectors_cosines():
    asked = [
        ("The ferry did not sail.\nQuestion: The ferry sailed. True or False?\nAnswer:", ("True", "False")),
        ("What do bees make?", ("honey", "a great deal of noise", "wax")),
        ("Write a line about rain. " * 40, ()),
    ]
    index = Index(PACKAGED)
    encoder = load_encoder(index.encoder)
    queries = [Query("rte", "nli", {"as it is": prompt}, choices) for prompt, choices in asked]
    examples = np.concatenate([read_examples_file(PACKAGED, task).embeddings for task in index.tasks])
    expected = encoder.encode(asked) @ examples.T
    np.testing.assert_allclose(Similarities(index, queries, Embedder(encoder, None))("as it is"), expected, atol=1e-3)
