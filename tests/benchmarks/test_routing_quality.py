"""The benchmark of routing computes in NumPy: cosines must be the encoder's vectors', weights the definition's."""

import numpy as np
import pytest

import routing_reference
from benchmarks.routing_quality.index import Embedder, Index, Query, Settings, Similarities, weigh
from loracomp.model.encoder import load_encoder
from loracomp.registry.library_files import PACKAGED, read_examples_file


@pytest.mark.model
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


def test_weights_are_those_of_the_definition():
    given = {"temperature": 0.1, "top_p": 0.9, "max_adapters": 4}
    random = np.random.default_rng(0)
    similarities = -np.sort(-random.uniform(0.3, 0.9, (50, 30)), axis=1)
    owners = random.integers(0, 7, (50, 30))
    masses, inside = weigh((similarities, owners), 7, Settings(k=30, **given))
    for place, (names, scores) in enumerate(zip(owners.tolist(), similarities.tolist(), strict=True)):
        expected = routing_reference.weigh(names, scores, routing_reference.Settings(**given))
        np.testing.assert_allclose(masses[place, expected.tasks], expected.probabilities, atol=1e-12)
        assert inside[place].sum() == expected.kept.sum()
        assert set(np.flatnonzero(inside[place])) == set(np.array(expected.tasks)[expected.kept])
