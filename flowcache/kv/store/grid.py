"""Numbers on a grid of a few bits: groups with a scale each, and codes packed into bytes.

Shape letters: ``...`` any leading dimensions, S numbers of a group; a group is what the last dimension holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (2, 4, 8)


def group_size(wanted: int, count: int) -> int:
    """The largest size up to ``wanted`` that divides ``count`` numbers into whole groups."""
    return next(size for size in range(min(wanted, count), 0, -1) if count % size == 0)


def on_affine_grid(x: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [..., S] from 0 to 2^bits - 1, scale and lowest value, both of ``dtype`` [..., 1].

    x is ``code * scale + lowest`` (KIVI: jy-yuan/KIVI, quant/new_pack.py), with scale and lowest as they are stored, so
    that the same numbers come to the same codes again. A group of equal numbers has scale 0, and comes back exactly
    as far as ``dtype`` holds it.
    """
    lowest, highest = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    top = 2**bits - 1
    scale, lowest = _finite((highest - lowest) / top, dtype), _finite(lowest, dtype)
    codes = ((x - lowest) / _divisor(scale)).clamp_(0, top).round_()
    return codes.to(torch.uint8), scale, lowest


def from_affine_grid(codes: Tensor, scale: Tensor, lowest: Tensor) -> Tensor:
    """What codes [..., S], scale and lowest value [..., 1] stand for: float32 [..., S]."""
    return torch.addcmul(lowest.float(), codes.float(), scale.float())


def affine_variance(scale: Tensor, size: int) -> Tensor:
    """Mean square of what rounding took off a group of ``size`` numbers, float32 in the shape of their scales: as of
    numbers anywhere between two grid points, scale^2 / 12, but that the lowest and the highest lie on the grid."""
    return scale.float().square() * (max(0, size - 2) / (12 * size))


def on_symmetric_grid(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes int8 [..., S] from -2^(bits-1) to 2^(bits-1) - 1 and scales float32 [..., 1]; x is ``code * scale``."""
    top = 2 ** (bits - 1) - 1
    scale = x.abs().amax(-1, keepdim=True) / top
    return (x / _divisor(scale)).round_().clamp_(-top - 1, top).to(torch.int8), scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., S] below 2^bits -> bytes [..., ceil(S * bits / 8)], the first code in the lowest bits."""
    in_byte = 8 // bits
    if in_byte == 1:
        return codes
    short = -codes.shape[-1] % in_byte
    if short:
        codes = torch.nn.functional.pad(codes, (0, short))
    packed = codes[..., ::in_byte].clone()
    for place in range(1, in_byte):
        packed |= codes[..., place::in_byte] << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """The first ``size`` codes of packed bytes, uint8 [..., size]."""
    in_byte = 8 // bits
    if in_byte == 1:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes = (packed[..., None] >> shifts) & (2**bits - 1)
    return codes.flatten(-2)[..., :size]


def _finite(x: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
