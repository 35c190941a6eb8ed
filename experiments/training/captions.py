"""The words of the caption grammar as tokens: shared by the embedded models' text encoders."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from eval.scenes import grammar_words


def build_tokenizer(max_length: int | None = None) -> PreTrainedTokenizerFast:
    """One token a word of the grammar, then the end token; unknown words share one token.

    ``max_length`` is the longest caption that the tokenizer says it is made for; None leaves that open.
    """
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *grammar_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=max_length,
    )
