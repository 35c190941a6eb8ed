"""The embedded SkyReels-V2's autoencoder: diffusers' causal VAE of Wan 2.1 at a small size."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from flowcache.models.wan.vae_cpu import quicken


class WanAutoencoder(nn.Module):
    """See experiments.training.autoencoder.Autoencoder.

    diffusers passes a clip through frame by latent frame, to bound its memory. The first latent frame alone and the
    rest at once is the same, the network being causal, and quicker.

    Args:
        config: of AutoencoderKLWan.
    """

    matrices_in = ("vae.encoder.down_blocks", "vae.encoder.mid_block", "vae.decoder.mid_block", "vae.decoder.up_blocks")

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.vae = AutoencoderKLWan(**config)
        quicken(self.vae)
        with torch.no_grad():  # little noise at first: means grown large to drown it are slow to shrink
            self.vae.quant_conv.bias[self.vae.config.z_dim :] -= 8.0

    @property
    def encoder(self) -> nn.Module:
        return self.vae.encoder

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video [N, 3, 1 + 4 (f - 1), H, W] -> posterior mean and log-variance, each [N, C, f, h, w]."""
        memory = _memory(self.vae.encoder)
        parts = [self.vae.encoder(part, feat_cache=memory, feat_idx=[0]) for part in _first_and_rest(video)]
        mean, log_variance = self.vae.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, video: Tensor) -> Tensor:
        return self.moments(video)[0]

    def decode(self, latent: Tensor) -> Tensor:
        memory = _memory(self.vae.decoder)
        parts = [
            self.vae.decoder(part, feat_cache=memory, feat_idx=[0], first_chunk=index == 0)
            for index, part in enumerate(_first_and_rest(self.vae.post_quant_conv(latent)))
        ]
        return torch.cat(parts, dim=2)

    def encode_clip(self, video: Tensor) -> Tensor:
        return self.encode(video[None])[0]

    def decode_clip(self, latent: Tensor) -> Tensor:
        return self.decode(latent[None])[0]


def _memory(network: nn.Module) -> list[None]:
    """Of a new clip: a place for every convolution to keep its last frames in."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())


def _first_and_rest(x: Tensor) -> list[Tensor]:
    """Split after the first of the frames in [N, C, F, H, W]; a clip of one has no rest."""
    return [part for part in (x[:, :, :1], x[:, :, 1:]) if part.shape[2]]
