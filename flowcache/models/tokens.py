"""From a caption to the tokens that a text encoder takes, at one length whatever the caption's."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from torch import Tensor

_tokenizing = threading.Lock()  # a tokenizer is told how to cut and to pad, and refuses that while another thread calls


def tokenize(
    tokenizer: Any, caption: str, length: int, num_front: int = 0, name: str | None = "prompt"
) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 where a token counts), each int64 [1, length].

    Args:
        tokenizer: of transformers.
        length: tokens that the caption is padded or cut to, with those that end it.
        num_front: tokens that the model puts in front, for which as many at the end go.
        name: of the argument that the caption was given as, for the warning that not all of it is read; None is silent.
    """
    with _tokenizing:
        batch = tokenizer(caption, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        whole = tokenizer(caption, verbose=False)["input_ids"]
        num_added = tokenizer.num_special_tokens_to_add()
    num_tokens, room = len(whole) - num_added, max(0, length - max(num_added, num_front))
    if num_tokens > room and name is not None:
        warnings.warn(
            f"the {name} has {num_tokens} tokens and the model reads {room}: the last {num_tokens - room} are cut off; "
            "shorten it, or put first what matters",
            stacklevel=1,
        )
    return batch["input_ids"], batch["attention_mask"]
