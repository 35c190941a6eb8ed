"""Captions of every chunk against the official code's (goldens/magi: h_caption_tokens), and what they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eval.scenes import plain_scenes
from experiments.job.paths import ROOT
from flowcache.models.magi.captions import clean_caption
from flowcache.models.magi.text import (
    DEFAULT_SPECIAL_TOKENS,
    TextEncoder,
    chunk_captions,
    load_special_tokens,
    null_mask,
)
from tests import golden_files
from tests.models.magi_goldens import manifest, tensors

LENGTH = 800
ORDER = manifest("h_caption_tokens")["application_order"]
PREFIX_CHUNKS = {"hq_duration": 0, "all": 0, "hq_duration_1clean": 1}


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return tensors("h_caption_tokens")


@pytest.fixture(scope="module")
def special_tokens(official) -> dict[str, Tensor]:
    return {name.removeprefix("in.token."): token for name, token in official.items() if name.startswith("in.token.")}


@pytest.fixture(scope="module")
def caption(official) -> tuple[Tensor, Tensor]:
    features, mask = torch.zeros(LENGTH, 3), torch.zeros(LENGTH)
    features[:16] = official["in.caption_first16"][0, 0]
    mask[: manifest("h_caption_tokens")["caption_mask_ones"]] = 1
    return features, mask


@pytest.mark.parametrize("case", sorted(PREFIX_CHUNKS))
def test_captions_of_chunks_are_the_official_ones(official, special_tokens, caption, case):
    """Prefix chunks carry the null caption and no mask, which is the generation's business; the rest is compared."""
    first = PREFIX_CHUNKS[case]
    captions, masks = chunk_captions(*caption, special_tokens, 10 - first, ORDER[case])
    assert torch.equal(captions[:, :16], official[f"out.{case}.caption_first16"][0, first:])
    assert torch.equal(masks[:, :64], official[f"out.{case}.mask_first64"][0, first:])
    assert not captions[:, 16 + len(ORDER[case]) :].any()
    assert captions.shape == (10 - first, LENGTH, 3)
    assert masks.sum(dim=1).eq(9 + len(ORDER[case])).all()


@pytest.mark.parametrize("case", sorted(PREFIX_CHUNKS))
def test_the_null_mask_is_the_official_one(official, case):
    for row in official[f"out.{case}.null_mask_first64"][0]:
        assert torch.equal(null_mask(LENGTH)[:64].to(row), row)
    assert null_mask(LENGTH).sum() == 50
    assert torch.equal(null_mask(12), torch.ones(12, dtype=torch.long))


def test_the_published_flags_are_the_default(special_tokens, caption):
    assert list(DEFAULT_SPECIAL_TOKENS) == ORDER["hq_duration"]
    default, explicit = (
        chunk_captions(*caption, special_tokens, 3),
        chunk_captions(*caption, special_tokens, 3, ORDER["hq_duration"]),
    )
    assert all(map(torch.equal, default, explicit))


def test_a_full_caption_is_cut_back_to_its_length(special_tokens):
    features, mask = torch.arange(12.0)[:, None].expand(12, 3), torch.ones(12, dtype=torch.long)
    captions, masks = chunk_captions(features, mask, special_tokens, 1)
    assert captions.shape == (1, 12, 3)
    assert torch.equal(captions[0, 2:], features[:10])
    assert masks.dtype == torch.long
    assert masks.all()


def test_types_and_device_are_the_captions(special_tokens):
    captions, _ = chunk_captions(torch.zeros(4, 3, dtype=torch.bfloat16), torch.ones(4), special_tokens, 2)
    assert captions.dtype == torch.bfloat16


def test_an_unknown_special_token_is_refused(special_tokens, caption):
    with pytest.raises(KeyError, match="no special token named 'SHINY_TOKEN'; there are BORDERNESS_TOKEN"):
        chunk_captions(*caption, special_tokens, 2, ["SHINY_TOKEN"])


def test_reads_the_official_archive_of_special_tokens(tmp_path):
    """Positions in other_tokens: 1 = HQ, 2.. = the first-frames flags, 7..14 = durations 1..8, 15 and 16 = styles."""
    random = np.random.default_rng(0)
    caption, logo, other = random.normal(size=(3, 17, 4)).astype(np.float32)
    path = tmp_path / "special_tokens.npz"
    np.savez(path, caption_token=caption[:1], logo_token=logo[:1], other_tokens=other)
    tokens = load_special_tokens(path)
    positions = {"TRANS_TOKEN": 0, "HQ_TOKEN": 1, "STATIC_FIRST_FRAMES_TOKEN": 2, "DYNAMIC_FIRST_FRAMES_TOKEN": 3}
    positions |= {"BORDERNESS_TOKEN": 4, "THREE_D_MODEL_TOKEN": 15, "TWO_D_ANIME_TOKEN": 16}
    positions |= {f"DURATION_TOKEN_{n}": 6 + n for n in range(1, 9)}
    assert set(tokens) == set(positions) | {"CAPTION_TOKEN", "LOGO_TOKEN"}
    for name, position in positions.items():
        expected = torch.from_numpy(other[position : position + 1]).half().float()
        assert torch.equal(tokens[name], expected)
        assert tokens[name].shape == (1, 4)
    assert torch.equal(tokens["LOGO_TOKEN"], torch.from_numpy(logo[:1]).half().float())


def test_reads_special_tokens_from_safetensors(tmp_path, special_tokens):
    path = tmp_path / "special_tokens.safetensors"
    save_file({name: token.half() for name, token in special_tokens.items()}, path)
    tokens = load_special_tokens(path)
    assert set(tokens) == set(special_tokens)
    assert all(token.dtype == torch.float32 for token in tokens.values())


def test_missing_special_tokens_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no special tokens at .*; the official ones are example/assets"):
        load_special_tokens(tmp_path / "special_tokens.npz")


@pytest.fixture(scope="module")
def t5_directory(tmp_path_factory) -> Path:
    """A T5 checkpoint of a few thousand random weights and a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    directory = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "a", "cat", "on", "the", "grass"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, dropout_rate=0.1)
    T5EncoderModel(config).save_pretrained(directory)
    return directory


CLEANED = golden_files.manifest("magi/caption_cleaning")["captions"]


@pytest.mark.parametrize("caption", CLEANED, ids=range(len(CLEANED)))
def test_captions_are_cleaned_as_officially(caption):
    assert clean_caption(caption) == CLEANED[caption]


def test_the_embedded_models_captions_are_clean_as_they_are():
    prompts = [
        *(ROOT / "experiments" / "prompts" / "embedded.txt").read_text(encoding="utf-8").splitlines(),
        *(scene.caption for scene in plain_scenes()),
    ]
    assert len(prompts) > 100
    assert [clean_caption(prompt) for prompt in prompts] == prompts


def test_a_prompt_is_cleaned_before_it_is_read(t5_directory):
    encoder = TextEncoder.from_pretrained(t5_directory, max_length=10)
    expected = encoder("a cat on the grass")
    assert all(map(torch.equal, encoder("<b>A Cat</b> on the GRASS"), expected))
    with pytest.raises(ValueError, match="nothing is left of the prompt '一只猫' as MAGI-1 reads it"):
        encoder("一只猫")


def test_encodes_a_prompt_padded_under_its_mask(t5_directory):
    encoder = TextEncoder.from_pretrained(t5_directory, max_length=10)
    features, mask = encoder("a cat on the grass")
    assert (features.shape, features.dtype) == ((10, 16), torch.float32)
    assert mask.tolist() == [1] * 6 + [0] * 4
    longer = TextEncoder.from_pretrained(t5_directory, max_length=20)
    torch.testing.assert_close(longer("a cat on the grass")[0][:6], features[:6], atol=1e-5, rtol=0)
    assert torch.equal(encoder("a cat on the grass")[0], features)  # no dropout
    assert not torch.allclose(encoder("the grass")[0][:3], features[:3], atol=1e-3)


def test_a_long_prompt_is_cut(t5_directory):
    encoder = TextEncoder.from_pretrained(t5_directory, max_length=4, dtype=torch.bfloat16)
    features, mask = encoder("a cat on the grass on the grass")
    assert (features.shape, features.dtype) == ((4, 16), torch.float32)
    assert mask.tolist() == [1, 1, 1, 1]


def test_a_missing_encoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no T5 encoder at .*: expected a transformers checkpoint"):
        TextEncoder.from_pretrained(tmp_path, max_length=10)
