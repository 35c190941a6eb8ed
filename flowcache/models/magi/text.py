"""From a prompt to the per-chunk captions MAGI-1 attends to: T5 features, special tokens, null captions.

Shape letters: L caption length, K caption channels.
Source: SandAI-org/MAGI-1 inference/pipeline/prompt_process.py, video_generate.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowcache.models.checkpoint import CheckpointError, load_text_encoder
from flowcache.models.magi.captions import readable_caption
from flowcache.models.offload import Visits
from flowcache.models.tokens import tokenize

NULL_CAPTION_TOKENS = 50  # how many positions of the null caption count
MAX_DURATION = 8
# Positions in ``other_tokens`` of the official special_tokens.npz.
_OFFICIAL_INDEX = {
    "TRANS_TOKEN": 0,
    "HQ_TOKEN": 1,
    "STATIC_FIRST_FRAMES_TOKEN": 2,
    "DYNAMIC_FIRST_FRAMES_TOKEN": 3,
    "BORDERNESS_TOKEN": 4,
    **{f"DURATION_TOKEN_{n}": 6 + n for n in range(1, MAX_DURATION + 1)},
    "THREE_D_MODEL_TOKEN": 15,
    "TWO_D_ANIME_TOKEN": 16,
}
DURATION = "DURATION_TOKEN"
DEFAULT_SPECIAL_TOKENS = ("HQ_TOKEN", DURATION)  # the flags that the published script turns on


def load_special_tokens(path: Path, channels: int | None = None) -> dict[str, Tensor]:
    """Special-token vectors by name, each float32 [1, K]; from the official ``.npz`` or a safetensors file.

    ``channels`` is the K they must have. Raises FileNotFoundError, or CheckpointError for a damaged file or other
    vectors; an archive of pickled objects counts as damaged and is not unpickled.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no special tokens at {path}; the official ones are example/assets/special_tokens.npz of the MAGI-1 "
            "repository: put that file there"
        )
    try:
        tokens = _read_special_tokens(path)
    except (SafetensorError, BadZipFile, OSError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not hold MAGI-1's special tokens ({error}); download it again") from error
    numbered = [f"{DURATION}_{n}" for n in range(1, MAX_DURATION + 1)]
    needed = {*DEFAULT_SPECIAL_TOKENS, *numbered} - {DURATION}
    if missing := needed - tokens.keys():
        raise CheckpointError(f"{path} lacks the special tokens {', '.join(sorted(missing))}; download it again")
    for name, token in ((name, tokens[name]) for name in sorted(needed)):
        if token.ndim != 2 or len(token) != 1 or channels not in (None, token.shape[1]):
            raise CheckpointError(
                f"{path} holds {name} as {list(token.shape)} instead of [1, {channels or 'channels'}]; use the special "
                "tokens that belong to this checkpoint"
            )
    return tokens


def _read_special_tokens(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return {name: token.float() for name, token in load_file(path).items()}
    archive = np.load(path, allow_pickle=False)
    tokens = {"CAPTION_TOKEN": archive["caption_token"], "LOGO_TOKEN": archive["logo_token"]}
    tokens |= {name: archive["other_tokens"][i : i + 1] for name, i in _OFFICIAL_INDEX.items()}
    # Upstream stores them in half precision before use, so the values are those of float16.
    return {name: torch.from_numpy(token.astype(np.float16)).float() for name, token in tokens.items()}


def chunk_captions(
    caption: Tensor,
    mask: Tensor,
    special_tokens: Mapping[str, Tensor],
    num_chunks: int,
    names: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Put special tokens in front of one caption, chunk by chunk.

    Each token goes in front of those before it, and the caption is cut back to its length, so the last name ends up
    first. ``DURATION_TOKEN`` differs by chunk: it tells how many chunks remain (at most 8, itself included).

    Args:
        caption: text-encoder features [L, K]; mask [L], 1 where a token counts.
        num_chunks: chunks that carry the caption (prefix chunks do not).

    Returns:
        captions [num_chunks, L, K] and masks [num_chunks, L] of caption's and mask's types.
    """
    length = len(mask)
    captions, masks = [], []
    for chunk in range(num_chunks):
        keys = [f"{DURATION}_{min(num_chunks - chunk, MAX_DURATION)}" if name == DURATION else name for name in names]
        missing = [key for key in keys if key not in special_tokens]
        if missing:
            raise KeyError(f"no special token named {missing[0]!r}; there are {', '.join(sorted(special_tokens))}")
        front = [special_tokens[key].to(caption) for key in reversed(keys)]
        captions.append(torch.cat([*front, caption])[:length])
        masks.append(torch.cat([mask.new_ones(len(keys)), mask])[:length])
    return torch.stack(captions), torch.stack(masks)


def null_mask(length: int) -> Tensor:
    """Which positions of the null caption count: the first 50, or all of a shorter one; int64 [length]."""
    return (torch.arange(length) < NULL_CAPTION_TOKENS).long()


class BlankText:
    """Stands in for the text encoder where there are no weights: captions have a length and channels; their content is
    nothing on device "meta", and on others noise that no prompt changes.

    Args:
        num_tokens: that any prompt is taken to have.
        max_length: tokens that it is padded or cut to (L).
        channels: K.
    """

    def __init__(self, num_tokens: int, max_length: int, channels: int, device: torch.device | str = "meta") -> None:
        if not isinstance(num_tokens, int) or num_tokens < 1:
            raise ValueError(f"caption_tokens={num_tokens!r} must be a whole number of at least 1: no prompt is empty")
        shape = (max_length, channels)
        if torch.device(device).type == "meta":
            self._features = torch.empty(shape, device="meta", dtype=torch.float32)
        else:
            random = torch.Generator().manual_seed(0)
            self._features = torch.randn(shape, generator=random, dtype=torch.float32).to(device)
        self._mask = (torch.arange(max_length) < num_tokens).long()
        numbered = [f"{DURATION}_{n}" for n in range(1, MAX_DURATION + 1)]
        self.special_tokens = dict.fromkeys((*DEFAULT_SPECIAL_TOKENS, *numbered), self._features[:1])

    def __call__(self, prompt: str, num_front: int = 0) -> tuple[Tensor, Tensor]:
        """What TextEncoder returns, but for the content."""
        return self._features, self._mask


class TextEncoder:
    """T5 encoder and its tokenizer, through transformers.

    Args:
        directory: a transformers checkpoint of a T5 encoder with its tokenizer (upstream: DeepFloyd/t5-v1_1-xxl).
        max_length: tokens a prompt is padded or cut to (L).
        device, dtype: where and in what type the encoder runs.
        offload: keep it in host memory but for its calls.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: object,
        max_length: int,
        device: torch.device | str = "cpu",
        offload: bool = False,
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.presence = Visits(encoder, device) if offload else nullcontext(encoder.to(device))
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.device = device

    @classmethod
    def from_pretrained(
        cls,
        directory: Path,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels: int | None = None,
        offload: bool = False,
    ) -> TextEncoder:
        """Read a directory; ``channels`` is the K that it must have. Raises FileNotFoundError or CheckpointError."""
        from transformers import T5EncoderModel

        if not (directory / "config.json").is_file():
            raise FileNotFoundError(
                f"no T5 encoder at {directory}: expected a transformers checkpoint (config.json, weights, tokenizer) "
                "such as DeepFloyd/t5-v1_1-xxl; download it and give its directory"
            )
        encoder, tokenizer = load_text_encoder(T5EncoderModel, "a T5 encoder", directory, directory, dtype, channels)
        return cls(encoder, tokenizer, max_length, device, offload)

    @torch.inference_mode()
    def __call__(self, prompt: str, num_front: int = 0) -> tuple[Tensor, Tensor]:
        """Prompt -> features float32 [L, K] and mask int64 [L] (1 where a token counts); it is cleaned as upstream.

        Raises ValueError where nothing is left of it. Warns where it is longer than what is read of it, which is
        shorter where ``num_front`` special tokens follow (``chunk_captions``).
        """
        caption = readable_caption(prompt)
        ids, mask = (t.to(self.device) for t in tokenize(self.tokenizer, caption, self.max_length, num_front))
        with self.presence:
            return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0].float(), mask[0]
