"""The VAE's layers as CPUs compute them several times faster: same weights, same results up to rounding.

Shape letters: N videos, C channels, F frames, H x W rows and columns.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import Tensor
from torch.nn import functional as F


class PlaneConv(WanCausalConv3d):
    """The causal convolution as a two-dimensional one, a frame's earlier frames being more of its channels."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """x [N, C, F, H, W], and up to as many frames before it as the kernel reaches back."""
        right, _, below, _, before, _ = self._padding
        if cache_x is not None and before:
            x = torch.cat([cache_x, x], dim=2)
            before -= cache_x.shape[2]
        if before:
            x = F.pad(x, (0, 0, 0, 0, before, 0))
        reach, stride = self.kernel_size[0], self.stride[0]
        num_frames = (x.shape[2] - reach) // stride + 1
        taps = [x[:, :, tap : tap + stride * (num_frames - 1) + 1 : stride] for tap in range(reach)]
        planes = torch.cat(taps, dim=1).transpose(1, 2).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        out = F.conv2d(planes, weight, self.bias, self.stride[1:], padding=(below, right))
        return out.unflatten(0, (len(x), num_frames)).transpose(1, 2)


class FusedNorm(WanRMS_norm):
    """The norm over channels in as few passes over the data as it takes; for float32, where no bias is learned."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, F, H, W] or [N, C, H, W]."""
        inverse = x.square().sum(dim=1, keepdim=True).clamp(min=1e-24).rsqrt()
        return x * inverse * (self.gamma * self.scale)


def quicken(vae: AutoencoderKLWan) -> None:
    """Exchange the VAE's convolutions and norms for those above."""
    faster = {WanCausalConv3d: PlaneConv, WanRMS_norm: FusedNorm}
    for module in vae.modules():
        module.__class__ = faster.get(type(module), type(module))
