"""Tests the part of a vector that holds the number and the lengths of the texts, not their embeddings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loracomp.model.encoder import READ_CHARACTERS, SHAPE, Encoder, encoder_views, shape

SHOWN = st.tuples(st.text(max_size=40000), st.none() | st.lists(st.text(min_size=1, max_size=600), max_size=12))


def alike(one, other) -> float:
    return float(shape(*one) @ shape(*other))


@given(SHOWN)
def test_a_shape_is_as_long_as_its_shares(shown):
    assert shape(*shown).shape == (SHAPE,)
    assert np.linalg.norm(shape(*shown)) == pytest.approx(np.sqrt(0.35 if shown[1] else 0.25), abs=1e-6)


@pytest.mark.parametrize("length", [20, 200, 2000])
def test_the_longer_another_prompt_is_the_less_alike(length):
    falling = [alike(("x" * length, None), ("y" * (length * times), None)) for times in (1, 2, 4, 8)]
    assert falling == sorted(falling, reverse=True)
    # Of the share 0.15, each doubling takes nearly the same: the scale is logarithmic.
    np.testing.assert_allclose(-np.diff(falling), 0.0283, atol=0.01)


def test_choices_are_told_apart_by_their_number_and_their_length():
    two, three, long = ("x", ("yes", "no")), ("x", ("yes", "no", "may")), ("x", ("a whole sentence", "and another one"))
    assert alike(two, two) == pytest.approx(0.35, abs=1e-6)
    assert alike(two, three) == pytest.approx(0.25, abs=0.02)
    assert 0.25 < alike(two, long) < 0.33
    # None have no length, and are as far from any number of choices.
    assert alike(("x", None), two) == alike(("x", ()), long) == pytest.approx(0.15, abs=1e-6)


def test_many_choices_count_alike():
    assert alike(("x", ["a"] * 7), ("x", ["a"] * 50)) == pytest.approx(0.35, abs=1e-6)
    assert alike(("x", ["a"] * 6), ("x", ["a"] * 7)) == pytest.approx(0.25, abs=1e-6)


def test_the_views_are_the_prompt_and_the_choices():
    assert encoder_views("Is ice cold?", ("yes", "no")) == ("Is ice cold?", "yes | no")
    assert encoder_views("Is ice cold?", None) == ("Is ice cold?", None)


def test_of_a_long_text_only_the_beginning_is_tokenised() -> None:
    """The encoder cuts off the rest, after its tokenizer has read it."""
    read: list[str] = []

    class Model:
        device = torch.device("cpu")

        def encode(self, texts: list[str], **_settings: object) -> np.ndarray:
            read.extend(texts)
            return np.ones((len(texts), 4), np.float32)

    encoder = Encoder("e", "e", None, "f", "f", 8 + SHAPE, 256, Model())
    encoder.encode([("a" * 1_000_000, ["b" * 500_000, "c"])])
    assert [len(text) for text in read] == [READ_CHARACTERS, READ_CHARACTERS]
