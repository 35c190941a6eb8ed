"""From a prompt to the features that Wan attends to: UMT5 through transformers.

Shape letters: L caption length, K caption channels.
Source: SkyworkAI/SkyReels-V2 skyreels_v2_infer/modules/t5.py, tokenizers.py.
"""

from __future__ import annotations

import html
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from flowcache.models.checkpoint import find_weights, load_text_encoder
from flowcache.models.offload import Visits
from flowcache.models.tokens import tokenize
from flowcache.models.wan.umt5 import OriginalUmt5

MAX_TOKENS = 512
# What upstream's command line guides away from (SkyworkAI/SkyReels-V2: generate_video_df.py).
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"  # noqa: RUF001
    "杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)


class TextEncoder:
    """UMT5 encoder and its tokenizer.

    Args:
        encoder, tokenizer: of transformers.
        max_length: tokens a prompt is padded or cut to (L), unless the tokenizer is made for fewer.
        device: where the encoder runs.
        offload: keep it in host memory but for its calls.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: object,
        max_length: int = MAX_TOKENS,
        device: torch.device | str = "cpu",
        offload: bool = False,
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.presence = Visits(encoder, device) if offload else nullcontext(encoder.to(device))
        self.tokenizer, self.device = tokenizer, device
        self.max_length = min(max_length, tokenizer.model_max_length)

    @classmethod
    def from_pretrained(
        cls,
        encoder: Path,
        tokenizer: Path,
        max_length: int = MAX_TOKENS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels: int | None = None,
        offload: bool = False,
    ) -> TextEncoder:
        """Read ``text_encoder`` and ``tokenizer`` of a diffusers checkpoint; ``channels`` is the K that it must have.

        ``encoder`` may be the original Wan 2.1's file as well. Raises CheckpointError.
        """
        from transformers import UMT5EncoderModel

        kind = OriginalUmt5 if encoder.is_file() else UMT5EncoderModel
        if not encoder.is_file():
            find_weights(encoder)
        loaded = load_text_encoder(kind, "a UMT5 encoder", encoder, tokenizer, dtype, channels)
        return cls(*loaded, max_length, device, offload)

    @torch.inference_mode()
    def __call__(self, prompt: str, name: str = "prompt") -> Tensor:
        """Prompt -> features float32 [1, L, K], zero beyond its end.

        Warns where it is longer than L; ``name`` is what it was given as.
        """
        # Nobody wrote the default themselves: small tokenizers cut it.
        name = None if prompt == NEGATIVE_PROMPT else name
        tokens = tokenize(self.tokenizer, _cleaned(prompt), self.max_length, name=name)
        ids, mask = (t.to(self.device) for t in tokens)
        with self.presence:
            features = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return (features * mask[..., None]).float()


def _cleaned(prompt: str) -> str:
    """Without broken encodings, HTML entities and runs of white space."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
