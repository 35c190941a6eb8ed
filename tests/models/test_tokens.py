"""Prompts longer than what is read of them: the number of tokens cut off is said, exactly."""

from __future__ import annotations

import warnings
from threading import Thread

import pytest
import torch
from transformers import AutoTokenizer

from experiments.job.paths import ROOT
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.models.tokens import tokenize
from tests.methods import vanilla

EMBEDDED = ROOT / "experiments" / "embedded"


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word, and one that ends a caption."""
    return AutoTokenizer.from_pretrained(EMBEDDED / "magi" / "t5")


def said(call, *arguments, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments, **options)
    return [str(warning.message) for warning in caught]


def test_ids_and_mask_are_the_tokenizers(tokenizer):
    for caption in ("a red circle", "red " * 30):
        ids, mask = tokenize(tokenizer, caption, 12, name=None)
        expected = tokenizer(caption, max_length=12, padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(ids, expected["input_ids"])
        assert torch.equal(mask, expected["attention_mask"])


@pytest.mark.parametrize(("num_words", "num_front", "num_cut"), [(11, 0, 0), (12, 0, 1), (10, 2, 0), (11, 2, 1)])
def test_the_end_of_a_caption_and_what_the_model_puts_in_front_take_room(tokenizer, num_words, num_front, num_cut):
    messages = said(tokenize, tokenizer, "red " * num_words, 12, num_front, "caption")
    room = num_words - num_cut
    expected = f"the caption has {num_words} tokens and the model reads {room}: the last {num_cut} are cut off; "
    assert [message.startswith(expected) for message in messages] == [True] * (num_cut > 0)
    assert said(tokenize, tokenizer, "red " * 40, 12, num_front, None) == []


def test_both_models_say_how_much_of_a_prompt_they_do_not_read():
    magi, skyreels = Magi.from_pretrained(EMBEDDED / "magi"), SkyReels.from_pretrained(EMBEDDED / "skyreels")
    fits, long = "red " * 15, "red " * 30
    for model, num_frames, room in ((magi, 24, 22), (skyreels, 17, 15)):
        assert said(model.generation, fits, num_frames, vanilla(), 0) == []
        (message,) = said(model.generation, long, num_frames, vanilla(), 0)
        assert message.startswith(f"the prompt has 30 tokens and the model reads {room}: the last {30 - room} are cut")
    (message,) = said(skyreels.generation, fits, 17, vanilla(), 0, negative_prompt="blue " * 16)
    assert message.startswith("the negative_prompt has 16 tokens and the model reads 15: the last 1 are cut off")


def test_threads_may_share_a_tokenizer(tokenizer):
    expected = [tokenize(tokenizer, "red " * n, 12, name=None) for n in range(1, 20)]
    failures: list[object] = []

    def work() -> None:
        try:
            for n in list(range(1, 20)) * 10:
                got = tokenize(tokenizer, "red " * n, 12, name=None)
                if not all(map(torch.equal, got, expected[n - 1])):
                    failures.append(n)
        except RuntimeError as error:
            failures.append(error)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
