"""From prompts to features: UMT5 itself, what counts, and what is cleaned away."""

from __future__ import annotations

import copy

import pytest
import torch

from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan.text import MAX_TOKENS, NEGATIVE_PROMPT, TextEncoder
from tests.models.skyreels_pipeline import WORDS, write_text_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    directory = tmp_path_factory.mktemp("text")
    write_text_encoder(directory)
    return TextEncoder.from_pretrained(directory / "text_encoder", directory / "tokenizer", max_length=12)


def test_features_are_umt5s_and_zero_beyond_the_prompt(encoder):
    features = encoder("a red circle")
    assert (features.shape, features.dtype) == ((1, 12, 32), torch.float32)
    assert (features[0, 3:] == 0).all()
    ids = torch.tensor([[WORDS.index(word) for word in ("a", "red", "circle")]])
    with torch.inference_mode():
        alone = encoder.encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(features[:, :3], alone, atol=1e-5, rtol=0)
    assert features[0, :3].abs().min() > 0


def test_prompts_are_cleaned_and_cut(encoder):
    plain = encoder("a red circle")
    assert torch.equal(encoder("  a \n red\tcircle "), plain)
    assert torch.equal(encoder("a &amp;amp; circle"), encoder("a & circle"))
    assert torch.equal(encoder("a caf\u00c3\u00a9"), encoder("a caf\u00e9"))  # UTF-8 read as Latin-1
    assert torch.equal(encoder("red " * 40), encoder("red " * 12))
    assert not torch.equal(encoder("a blue circle"), plain)


def test_a_tokenizer_made_for_fewer_tokens_sets_the_length(encoder):
    tokenizer = copy.deepcopy(encoder.tokenizer)
    assert tokenizer.model_max_length > MAX_TOKENS == TextEncoder(encoder.encoder, tokenizer).max_length
    tokenizer.model_max_length = 7
    short = TextEncoder(encoder.encoder, tokenizer)
    torch.testing.assert_close(short("a red circle"), encoder("a red circle")[:, :7], atol=1e-5, rtol=0)


def test_lengths_are_those_of_upstream():
    assert MAX_TOKENS == 512
    assert NEGATIVE_PROMPT.startswith("色调艳丽")


def test_a_missing_encoder_is_one_clear_message(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights in .*text_encoder"):
        TextEncoder.from_pretrained(tmp_path / "text_encoder", tmp_path / "tokenizer")
