"""When a text ends at a stop text: as if the whole text were decoded after each token, without doing that."""

import random
from itertools import count

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from loracomp.model.text import Prompt, Text

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, two long ones, and one that is not a part of the text."""
    vocabulary = [*BYTES, "ab" * 20, "ENDab" * 5, "<pad>"]
    made = Tokenizer(BPE(vocab=dict(zip(vocabulary, count(), strict=False)), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


@pytest.mark.parametrize("seed", range(20))
def test_a_text_ends_where_the_whole_text_has_a_stop(tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    drawn = random.Random(seed)
    of = tokenizer.get_vocab()
    byte = [of[each] for each in BYTES]
    parts = [[of["<pad>"]] * 40, [of["ab" * 20]], [of["ENDab" * 5]], drawn.choices(byte, k=5), drawn.choices(byte, k=1)]
    stops = drawn.sample(["né", "日本", "END", "ba", "�n", "\n\n", "x日本x"], 3)
    for stop in stops:
        parts += [[of[each] for each in encoded(stop)[:cut]] for cut in (None, 1, 2, -1)]
    text = Text(Prompt([], 10_000, stops), tokenizer, [])
    while len(text.tokens) < 400:
        for token in drawn.choice(parts):
            text.tokens.append(token)
            whole = tokenizer.decode(text.tokens, skip_special_tokens=True)
            found = any(stop in whole for stop in stops)
            assert text.ended == found, (whole, stops)
            if found:
                return


def encoded(text: str) -> str:
    """The text's bytes, each as the character that stands for it in the vocabulary."""
    ((pieces, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return pieces


@pytest.mark.parametrize("stops", [[], ["\ufffd"]])
@pytest.mark.parametrize("character", ["é", "日", "😀"])
def test_a_text_never_ends_within_a_character(
    tokenizer: PreTrainedTokenizerFast, character: str, stops: list[str]
) -> None:
    of = tokenizer.get_vocab()
    tokens = [of[each] for each in encoded("a" + character)]
    for cut in range(1, len(tokens) + 1):
        text = Text(Prompt([], len(tokens), stops), tokenizer, [])
        for token in tokens[:cut]:
            text.tokens.append(token)
            assert text.ended == (text.tokens == tokens)
        expected = "a" + (character if cut == len(tokens) else "")
        assert (text.result().text, text.result().finish_reason) == (expected, "length")


def test_a_written_replacement_character_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = [tokenizer.get_vocab()[each] for each in encoded("so \ufffd")]
    for stops, expected in (([], "so \ufffd"), (["\ufffd"], "so ")):
        text = Text(Prompt([], len(tokens), stops), tokenizer, [])
        text.tokens = tokens
        assert text.ended
        assert text.result().text == expected


def test_looking_for_a_stop_costs_no_more_in_a_long_text(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: decoded.append(len(ids)) or decode(ids, **how))
    text = Text(Prompt([], 10_000, ["日本", "END"]), tokenizer, [])
    text.tokens = [0] * 5_000
    assert not text.ended
    assert sum(decoded) < 100
