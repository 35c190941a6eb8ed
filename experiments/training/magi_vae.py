"""The embedded MAGI-1's autoencoder, trained on 12-frame tiles, the length it is used at."""

from __future__ import annotations

from torch import Tensor

from flowcache.models.magi.vae import MagiVae


class MagiAutoencoder(MagiVae):
    """See experiments.training.autoencoder.Autoencoder."""

    matrices_in = ("encoder.blocks", "decoder.blocks")

    def encode_clip(self, video: Tensor) -> Tensor:
        """One clip [3, F, H, W] -> latent mean [C, f, h, w], tile by tile as at inference."""
        tiles = video.unflatten(1, (-1, self.config.video_length)).transpose(0, 1)
        return self.encode(tiles).transpose(0, 1).flatten(1, 2)

    def decode_clip(self, latent: Tensor) -> Tensor:
        """One clip's latent [C, f, h, w] -> video [3, F, H, W], tile by tile."""
        length = self.config.video_length // self.config.patch_length
        tiles = latent.unflatten(1, (-1, length)).transpose(0, 1)
        return self.decode(tiles).transpose(0, 1).flatten(1, 2)
