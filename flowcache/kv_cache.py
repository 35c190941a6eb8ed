"""Keys and values of every chunk seen so far: one preallocated buffer a layer, written in place, read as a view.

Shape letters: B batch, G key-value heads, E channels a head, T tokens a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KvCache:
    """The cache of one guidance branch of one generation.

    Chunk i owns slots [i*T, (i+1)*T): slot order is position order, and keys carry their rotary position. Buffers are
    allocated once, at ``num_chunks`` chunks, and never grow.

    Args:
        num_layers, num_heads, head_channels: the network's layers, key-value heads (G) and channels a head (E).
        tokens_per_chunk: T.
        num_chunks: capacity.
        batch_size, dtype, device: of the keys and values.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_channels: int,
        tokens_per_chunk: int,
        num_chunks: int,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if min(num_layers, num_heads, head_channels, tokens_per_chunk, num_chunks, batch_size) < 1:
            raise ValueError(
                f"every size of a KV cache must be at least 1, got {num_layers} layers, {num_heads} heads of "
                f"{head_channels}, {num_chunks} chunks of {tokens_per_chunk} tokens, batch {batch_size}"
            )
        self.tokens_per_chunk = tokens_per_chunk
        self.num_chunks = num_chunks
        shape = (num_layers, batch_size, num_heads, num_chunks * tokens_per_chunk, head_channels)
        # Zeros, not empty: a slot read before it is written then contributes a finite key, as in the official goldens.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._written = [False] * num_chunks
        self._clean = [False] * num_chunks

    def write(self, layer: int, chunk: int, key: Tensor, value: Tensor) -> None:
        """Overwrite a chunk's slots with key and value, each [B, G, T, E]."""
        slots = slice(chunk * self.tokens_per_chunk, (chunk + 1) * self.tokens_per_chunk)
        self._keys[layer, :, :, slots] = key
        self._values[layer, :, :, slots] = value
        self._written[chunk] = True

    def read(self, layer: int, first_chunk: int, last_chunk: int) -> tuple[Tensor, Tensor]:
        """Keys and values of chunks first..last inclusive: views, each [B, G, L, E]."""
        slots = slice(first_chunk * self.tokens_per_chunk, (last_chunk + 1) * self.tokens_per_chunk)
        return self._keys[layer, :, :, slots], self._values[layer, :, :, slots]

    def finish(self, chunk: int) -> None:
        """Mark a chunk's entries as clean: they belong to a finished chunk and will not be written again."""
        self._clean[chunk] = True

    def clear(self) -> None:
        """Forget every entry, for a new window; the buffers stay."""
        self._written = [False] * self.num_chunks
        self._clean = [False] * self.num_chunks

    def copy_chunk_from(self, other: KvCache, chunk: int) -> None:
        """Take over a chunk's entries from another branch's cache of the same shape."""
        slots = slice(chunk * self.tokens_per_chunk, (chunk + 1) * self.tokens_per_chunk)
        self._keys[:, :, :, slots] = other._keys[:, :, :, slots]
        self._values[:, :, :, slots] = other._values[:, :, :, slots]
        self._written[chunk] = True

    @property
    def clean_chunks(self) -> tuple[int, ...]:
        return tuple(chunk for chunk, clean in enumerate(self._clean) if clean)

    @property
    def num_tokens(self) -> int:
        """Tokens held, per layer and head."""
        return sum(self._written) * self.tokens_per_chunk

    @property
    def bytes_allocated(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    @property
    def bytes_used(self) -> int:
        return self.bytes_allocated * sum(self._written) // self.num_chunks
