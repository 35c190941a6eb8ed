"""Wan's VAE against the official numbers (goldens/wan: vae): whole, in pieces, and encoding."""

from __future__ import annotations

import pytest
import torch

from flowcache.models.wan.vae import WanVae
from tests.models import wan_files
from tests.models.wan_goldens import latents, tensors

VAE = tensors("vae")
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def vae() -> WanVae:
    return WanVae(wan_files.vae())


@pytest.mark.parametrize("pieces", [[6], [3, 1, 2], [1] * 6])
def test_decoding_is_the_official_one_whole_and_in_pieces(vae, pieces):
    decode, latent = vae.decoder(), latents(VAE["in.latents"])
    frames = [decode(piece) for piece in latent.split(pieces, dim=2)]
    assert [piece.shape[2] for piece in frames] == [4 * n - 3 * (i == 0) for i, n in enumerate(pieces)]
    video = latents(torch.cat(frames, dim=2)).clamp(-1, 1)
    torch.testing.assert_close(video, VAE["decode"], atol=TOLERANCE, rtol=0)


def test_encoding_is_the_official_one_and_an_image_is_a_videos_first_latent(vae):
    video = VAE["in.video"]
    torch.testing.assert_close(latents(vae.encode(video)), VAE["encode"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(latents(vae.encode(video[:, :, :1])), VAE["encode_image"], atol=TOLERANCE, rtol=0)
