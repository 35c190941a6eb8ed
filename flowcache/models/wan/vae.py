"""Wan 2.1's VAE, through diffusers, and the frames of a video as its chunks are finished.

A window's first latent frame is one pixel frame and every other four, and each depends on those before it in its window
only; so chunks decode as they come, with the convolutions' memory kept between them.

Shape letters: C latent channels, f x h x w latent frames, rows and columns, F x H x W pixel frames, rows and columns.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from flowcache.models.frames import as_uint8
from flowcache.models.offload import Visits
from flowcache.models.wan.config import TEMPORAL_FACTOR
from flowcache.models.wan.vae_cpu import quicken


class WanVae:
    """Latents are normalised by the VAE's own mean and deviation of each channel.

    On a CPU it takes the VAE over and exchanges slow layers (see ``vae_cpu``).

    Args:
        vae: on the device where it runs, unless
        presence: is given: the VAE is then in host memory, and in ``presence`` it visits its device.
    """

    def __init__(self, vae: AutoencoderKLWan, presence: Visits | None = None) -> None:
        if vae.config.patch_size is not None:
            raise ValueError("this VAE takes patches of pixels (Wan 2.2); these models use Wan 2.1's, without")
        self.vae = vae
        self.spatial_factor: int = vae.config.scale_factor_spatial
        shape = (1, vae.config.z_dim, 1, 1, 1)
        weight = vae.post_quant_conv.weight
        device = weight.device if presence is None else presence.device
        self.presence = nullcontext() if presence is None else presence
        if presence is None and device.type == "cpu" and weight.dtype == torch.float32:
            quicken(vae)
        self._mean = torch.tensor(vae.config.latents_mean, dtype=weight.dtype, device=device).view(shape)
        self._deviation = torch.tensor(vae.config.latents_std, dtype=weight.dtype, device=device).view(shape)

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames [1, 3, 1 + 4 (f - 1), H, W] in [-1, 1] -> latent float32 [1, C, f, h, w], the posterior's mean.

        As diffusers' ``encode``, which keeps the convolutions' memory on the module, where threads would share it.
        """
        memory = _empty_memory(self.vae.encoder)
        first, rest = frames.to(self._mean).split([1, frames.shape[2] - 1], dim=2)
        with self.presence:
            pieces = [
                self.vae.encoder(piece, feat_cache=memory, feat_idx=[0])
                for piece in (first, *(rest.split(TEMPORAL_FACTOR, dim=2) if rest.shape[2] else ()))
            ]
            mean = self.vae.quant_conv(torch.cat(pieces, dim=2)).chunk(2, dim=1)[0]
        return ((mean - self._mean) / self._deviation).float()

    def decoder(self) -> WindowDecoder:
        """A decoder at the beginning of a window."""
        return WindowDecoder(self.vae, self._mean, self._deviation, self.presence)


class WindowDecoder:
    """Decodes one window's latents in order, any number of frames at a time."""

    def __init__(
        self, vae: AutoencoderKLWan, mean: Tensor, deviation: Tensor, presence: AbstractContextManager
    ) -> None:
        self._vae, self._mean, self._deviation, self._presence = vae, mean, deviation, presence
        self._memory = _empty_memory(vae.decoder)
        self._is_first = True

    @torch.inference_mode()
    def __call__(self, latent: Tensor) -> Tensor:
        """The next latent frames [1, C, f, h, w] -> frames float32 [1, 3, F, H, W], as decoded: not cut to [-1, 1]."""
        with self._presence:
            return self._decode(latent)

    def _decode(self, latent: Tensor) -> Tensor:
        pieces = []
        for frame in self._vae.post_quant_conv(latent.to(self._mean) * self._deviation + self._mean).split(1, dim=2):
            pieces.append(
                self._vae.decoder(frame, feat_cache=self._memory, feat_idx=[0], first_chunk=self._is_first).float()
            )
            self._is_first = False
        return torch.cat(pieces, dim=2)


def _empty_memory(network: nn.Module) -> list[Tensor | None]:
    """What an encoder or decoder remembers of the frames before, one entry for each of its convolutions."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())


class FrameStream:
    """The frames of one generation, window after window.

    Args:
        vae: on the device of the latents.
        overlap_frames: how many of the last frames the next window begins with.
        history: float32 [1, 3, F, H, W] in [-1, 1], frames before the first window (a video to continue), or None.
    """

    def __init__(self, vae: WanVae, overlap_frames: int, history: Tensor | None = None) -> None:
        self._vae, self._overlap_frames = vae, overlap_frames
        self._last = history
        self._held: Tensor | None = None

    def open(self, given: Tensor | None, emit: bool) -> None:
        """Begin a window with given latents [1, C, f, h, w]; ``emit`` puts their frames before the next chunk's."""
        self._decode = self._vae.decoder()
        frames = None if given is None else self._decode(given)
        self._held = frames if emit else None

    def decode(self, latent: Tensor) -> Tensor:
        """The next chunk's latent [1, C, f, h, w] -> its new frames, uint8 [F, H, W, 3]. Raises as ``as_uint8``."""
        frames = self._decode(latent)
        if self._held is not None:
            frames, self._held = torch.cat([self._held, frames], dim=2), None
        shown, frames = as_uint8(frames), frames.clamp(-1, 1)
        last = frames if self._last is None else torch.cat([self._last, frames], dim=2)
        self._last = last[:, :, -self._overlap_frames :]
        return shown

    def encode_last_frames(self) -> Tensor:
        """Latents float32 [1, C, f, h, w] of the last frames, for the window that begins with them."""
        return self._vae.encode(self._last)
