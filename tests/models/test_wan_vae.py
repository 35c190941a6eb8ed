"""Wan's VAE against the official numbers (goldens/wan: vae): whole, in pieces, and encoding."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from flowcache.models.wan.vae import WanVae
from tests.models.wan_goldens import latents, manifest, tensors

VAE = tensors("vae")
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def vae() -> WanVae:
    facts = manifest("vae")["config"]
    model = AutoencoderKLWan(
        base_dim=facts["dim"],
        z_dim=facts["z_dim"],
        dim_mult=facts["dim_mult"],
        num_res_blocks=facts["num_res_blocks"],
        attn_scales=facts["attn_scales"],
        temperal_downsample=facts["temperal_downsample"],
        latents_mean=VAE["mean"].tolist(),
        latents_std=VAE["std"].tolist(),
    )
    names = manifest("mapping")["vae"]
    weights = {names[name]: value for name, value in tensors("vae_weights").items()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.reshape(shapes[name]) for name, value in weights.items()}, strict=True)
    return WanVae(model.eval().requires_grad_(False))


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
