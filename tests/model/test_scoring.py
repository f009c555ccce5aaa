"""Scores are checked against a plain forward pass over each prompt + choice alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from loracomp.errors import JobError
from loracomp.model.cpu import ROW_TOKENS
from loracomp.model.prefix import groups_by_start, in_common, read_prefix
from loracomp.model.scoring import log_likelihoods, normalize, shares_prompts
from loracomp.model.tokens import encode_choices
from model_fixtures import TINY_CONTEXT, letter_tokenizer, tiny_llama


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def plain_score(model, start, continuation):
    """Sum of log p(token | what stands before it), one row, no padding, no sharing."""
    logits = model(torch.tensor([start + continuation])).logits[0].log_softmax(-1)
    return sum(logits[len(start) + i - 1, token] for i, token in enumerate(continuation))


def score(model, tokenizer, *questions):
    encoded = [encode_choices(tokenizer, prompt, choices, TINY_CONTEXT) for prompt, choices in questions]
    return log_likelihoods(model, encoded)


def test_scores_equal_a_plain_forward_of_each_choice_alone(tiny_model, tokenizer):
    questions = [
        ("Is the sky blue?\nAnswer:", ["yes", "no", "perhaps not"]),
        ("A:", ["x", "y"]),
        ("The longest of the prompts, to have padding in the others:", ["one", "a", "b"]),
    ]
    for (prompt, choices), got in zip(questions, score(tiny_model, tokenizer, *questions), strict=True):
        expected = [plain_score(tiny_model, ids(tokenizer, prompt), ids(tokenizer, " " + c)) for c in choices]
        torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choices", [["yes", "no", "perhaps not"], ["x", "y"]])
def test_rows_that_continue_a_prefix_score_as_whole_rows(tiny_model, tokenizer, choices):
    prompts = ["Is it so?\nText: a\nAnswer:", "Is it so?\nText: a longer one\nAnswer:", "Is it so?\nText"]
    encoded = [encode_choices(tokenizer, prompt, choices, TINY_CONTEXT) for prompt in prompts]
    common = in_common([question.rows[0].prompt[:-1] for question in encoded])
    assert common == len(ids(tokenizer, "Is it so?\nTex"))
    prefix = read_prefix(tiny_model, encoded[0].rows[0].prompt[:common])
    for _ in range(2):  # a pass leaves the prefix unchanged
        found = log_likelihoods(tiny_model, [question.after(common) for question in encoded], prefix)
        torch.testing.assert_close(found, log_likelihoods(tiny_model, encoded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "common"),
    [([], 0), ([[1, 2]], 0), ([[1, 2, 3], (1, 2)], 2), ([[1, 2], [1, 3], [1, 2, 4]], 1), ([[], [1]], 0)],
)
def test_rows_have_in_common_what_all_begin_with(rows, common):
    assert in_common(rows) == common


def test_items_are_grouped_by_key_and_first_tokens():
    items = ["a:one two", "b:one two", "a:one three", "a:other", "a:on"]
    found = groups_by_start(items, key=lambda item: item[0], tokens=lambda item: item[2:], first=3)
    assert [*found] == [(5, ["a:one two", "a:one three"]), (0, ["b:one two"]), (0, ["a:other"]), (0, ["a:on"])]


def test_trailing_white_space_of_the_prompt_is_scored_with_the_choice(tiny_model, tokenizer):
    got = score(tiny_model, tokenizer, ("Pick one:\n", ["up", "down"]))[0]
    expected = [plain_score(tiny_model, ids(tokenizer, "Pick one:"), ids(tokenizer, "\n" + c)) for c in ("up", "down")]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_one_token_choices_share_a_row(tokenizer):
    one_token = SpaceMergingTokenizer(tokenizer)
    question = encode_choices(one_token, "A:", ["x", "y", "z"], TINY_CONTEXT)
    assert ([row.branches for row in question.rows], question.token_counts) == ([()], (1, 1, 1))
    mixed = encode_choices(one_token, "A:", ["x", "long", "y"], TINY_CONTEXT)
    assert ([len(row.branches) for row in mixed.rows], mixed.token_counts) == ([1], (1, 4, 1))


class SpaceMergingTokenizer:
    """The letter tokenizer with a space dropped before each letter, so that ' x' is the one token 'x'."""

    bos_token_id = None

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text, **options):
        texts = text.replace(" ", "") if isinstance(text, str) else [t.replace(" ", "") for t in text]
        return self.tokenizer(texts, **options)


def test_one_token_choices_score_as_if_each_had_its_row(tiny_model, tokenizer):
    got = score(tiny_model, SpaceMergingTokenizer(tokenizer), ("A:", ["x", "long", "y"]))[0]
    expected = [plain_score(tiny_model, ids(tokenizer, "A:"), ids(tokenizer, c)) for c in ("x", "long", "y")]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_choices_branch_off_one_prompt_until_the_row_is_long_enough(tokenizer):
    few = encode_choices(tokenizer, "A:", ["one", "two", "three"], TINY_CONTEXT)
    assert [len(row.branches) for row in few.rows] == [3]
    many = encode_choices(tokenizer, "A:", [f"{i:050}" for i in range(30)], 2 * ROW_TOKENS)
    assert [len(row.branches) for row in many.rows] == [10, 10, 10]
    assert max(len(row.tokens) for row in many.rows) <= ROW_TOKENS
    fewer = encode_choices(tokenizer, "A:", [f"{i:050}" for i in range(30)], TINY_CONTEXT)
    assert [len(row.branches) for row in fewer.rows] == [5] * 6
    assert max(len(row.tokens) for row in fewer.rows) <= TINY_CONTEXT
    alone = encode_choices(tokenizer, "A:", ["one", "two", "three"], TINY_CONTEXT, shared_prompt=False)
    assert [len(row.branches) for row in alone.rows] == [1, 1, 1]


def test_no_long_row_branches(tiny_model, tokenizer, monkeypatch):
    """Its mask would have the square of its tokens."""
    choices = ["one", "two", "three", "a"]
    expected = score(tiny_model, tokenizer, ("Is it so?\nAnswer:", choices))[0]
    monkeypatch.setattr("loracomp.model.tokens.BRANCHED_TOKENS", 24)
    question = encode_choices(tokenizer, "Is it so?\nAnswer:", choices, TINY_CONTEXT)
    assert all(len(row.tokens) <= 24 or len(row.branches) == 1 for row in question.rows)
    assert len(question.rows) > 1
    torch.testing.assert_close(log_likelihoods(tiny_model, [question])[0], expected, rtol=1e-5, atol=1e-5)


def test_what_would_take_minutes_to_tokenise_is_refused_before(tokenizer):
    class Untouched:
        def __call__(self, *_arguments, **_settings):
            raise AssertionError("it was tokenised")

    prompt, choices = "a" + " " * 100_000 + "b", [f"choice {number}" for number in range(1000)]
    with pytest.raises(JobError, match=r"prompt and choices have 100,\d+,.* at most 4,000,000") as error:
        encode_choices(Untouched(), prompt, choices, TINY_CONTEXT)
    assert (error.value.code, error.value.retry) == ("prompt_too_long", False)


def test_many_branches_over_several_rows_score_as_if_each_had_its_row(tiny_model, tokenizer):
    choices = [f"{i} {'ab' * (i % 60)}" for i in range(40)]
    shared, alone = (encode_choices(tokenizer, "A b:", choices, TINY_CONTEXT, shared_prompt=s) for s in (True, False))
    assert (len(shared.rows) > 1, len(alone.rows)) == (True, 40)
    short = encode_choices(tokenizer, "B:", ["x", "yz"], TINY_CONTEXT)
    got = log_likelihoods(tiny_model, [short, shared])[1]
    expected = log_likelihoods(tiny_model, [alone])[0]
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_a_model_shares_prompts_only_where_branches_cannot_see_each_other(tiny_model, tokenizer):
    small = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "intermediate_size": 32}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    assert shares_prompts(tiny_model) and shares_prompts(gpt2)
    shared, alone = (encode_choices(tokenizer, "A:", ["one", "or"], 64, shared_prompt=s) for s in (True, False))
    torch.testing.assert_close(log_likelihoods(gpt2, [shared]), log_likelihoods(gpt2, [alone]), rtol=1e-5, atol=1e-5)
    unfit = [
        BloomForCausalLM(BloomConfig(vocab_size=80, hidden_size=16, n_layer=2, n_head=2)),  # ALiBi
        MambaForCausalLM(MambaConfig(**small)),  # a recurrent state
        MistralForCausalLM(MistralConfig(**small, **heads, num_key_value_heads=2, sliding_window=8)),
        Gemma2ForCausalLM(
            Gemma2Config(**small, **heads, num_key_value_heads=2, head_dim=8)
        ),  # every other layer slides
        GPTNeoForCausalLM(  # likewise, by other names
            GPTNeoConfig(
                vocab_size=80, hidden_size=16, num_heads=2, num_layers=2, attention_types=[[["global", "local"], 1]]
            )
        ),
    ]
    assert [shares_prompts(model.eval()) for model in unfit] == [False] * len(unfit)


@pytest.mark.parametrize("choice", ["zebra", "z", "x"])
def test_a_choice_that_merges_with_the_prompt_is_scored_whole(tiny_model, tokenizer, choice):
    # The whole text holds the token 'q z' (or 'q '), which the prompt alone does not: the seam is inside a token.
    start = ids(tokenizer, "a q")
    assert ids(tokenizer, f"a q {choice}")[: len(start)] != start
    question = encode_choices(tokenizer, "a q", [choice, "other"], TINY_CONTEXT)
    assert question.token_counts == (len(choice) + 1, len(" other"))
    got = log_likelihoods(tiny_model, [question])[0]
    torch.testing.assert_close(got[0], plain_score(tiny_model, start, ids(tokenizer, " " + choice)))


def test_bos_starts_the_prompt_once_and_eos_never_follows_it(tiny_model, tokenizer):
    with_bos = letter_tokenizer(bos=True)
    assert with_bos("a")["input_ids"] == [0, *ids(tokenizer, "a"), 1]
    got = score(tiny_model, with_bos, ("A:", ["yes"]), ("<bos>A:", ["yes"]))
    expected = plain_score(tiny_model, [0, *ids(tokenizer, "A:")], ids(tokenizer, " yes"))
    torch.testing.assert_close(torch.cat(got), expected.expand(2), rtol=1e-5, atol=1e-5)


def test_normalisations_divide_by_what_they_name(tokenizer):
    question = encode_choices(tokenizer, "A:", ["yes", "es"], TINY_CONTEXT)
    scores = torch.tensor([-6.0, -6.0])
    assert normalize(scores, question, "none").tolist() == [-6, -6]
    assert normalize(scores, question, "characters").tolist() == [-2, -3]  # of 'yes' and 'es', without the space
    assert normalize(scores, question, "tokens").tolist() == [-2, -3]  # ' ', 'y', 'es' and ' ', 'es'


def test_a_prompt_that_is_too_long_says_how_long_it_is(tokenizer):
    fits = "a" * (TINY_CONTEXT - len(" yes") + 1 + 1)  # the last token is never fed, and 'es' is one token
    encode_choices(tokenizer, fits, ["yes", "no"], TINY_CONTEXT)
    with pytest.raises(JobError, match=f"take {TINY_CONTEXT + 1} tokens.* at most {TINY_CONTEXT}") as error:
        encode_choices(tokenizer, fits + "a", ["yes", "no"], TINY_CONTEXT)
    assert (error.value.code, error.value.retry) == ("prompt_too_long", False)


def test_a_blank_prompt_is_refused(tokenizer):
    with pytest.raises(JobError, match="prompt is blank"):
        encode_choices(tokenizer, " \n", ["a", "b"], TINY_CONTEXT)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 reads it
def test_gradients_flow_through_a_peft_model_and_only_scored_spots_reach_the_head(tokenizer):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape))
    scores = score(model, tokenizer, ("Is it so:", ["yes", "no"]), ("A:", ["x", "y"]))
    # The prompt's end gives every choice's first token; then 'y', 'es' are left of ' yes', 'n', 'o' of ' no', 'x', 'y'.
    assert seen == [(1, (1 + 2 + 2) + (1 + 1 + 1), 32)]
    sum(s.sum() for s in scores).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_in_bfloat16_scored_tokens_keep_their_float32_logits(tokenizer):
    """Logits near 20 in bfloat16 are 0.125 apart; the head in float32 over the same hidden states tells them apart."""
    model = tiny_llama()
    model.lm_head.weight.mul_(8)
    model = model.bfloat16()
    choices = list("abcdefghijklmnopqr")
    got = score(model, SpaceMergingTokenizer(tokenizer), ("A:", choices))[0]
    hidden = model.model(torch.tensor([ids(tokenizer, "A:")])).last_hidden_state[0, -1].float()
    exact = torch.stack([hidden @ model.lm_head.weight[ids(tokenizer, c)[0]].float() for c in choices])
    rounded = exact.bfloat16().float()
    torch.testing.assert_close(got - got[0], exact - exact[0], rtol=1e-5, atol=1e-5)
    assert (rounded - exact).abs().max() > 0.02  # the rounding that would have been


def test_what_a_model_does_to_logits_after_its_head_counts(tokenizer):
    """Gemma 2 caps its logits softly."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    got = score(model, tokenizer, ("A:", ["yes", "x"]))[0]
    expected = [plain_score(model, ids(tokenizer, "A:"), ids(tokenizer, " " + c)) for c in ("yes", "x")]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-5)
    narrow = score(model.bfloat16(), tokenizer, ("A:", ["yes", "x"]))[0]
    torch.testing.assert_close(narrow, got, rtol=0.02, atol=0.02)
