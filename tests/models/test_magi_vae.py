"""The ViT VAE against the official code's numbers (goldens/magi: i_vae_*), and its own invariants."""

from copy import deepcopy

import pytest
import torch

from flowcache.models.magi.model import _vae_type
from flowcache.models.magi.vae import MagiVae, Tiling, VaeConfig
from tests.models.magi_goldens import manifest, tensors

ABSOLUTE = 2e-5  # the tolerance of goldens/magi/README.md


@pytest.fixture(scope="module")
def vae() -> MagiVae:
    model = MagiVae(VaeConfig(**manifest("i_vae_encode_decode")["config"]))
    weights = {name: value.float() for name, value in tensors("vae_weights").items()}
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encode_decode() -> dict[str, torch.Tensor]:
    return tensors("i_vae_encode_decode")


@pytest.mark.parametrize("size", ["native", "resized", "image"])
def test_encode_and_decode_match_the_official_code(vae, encode_decode, size):
    latent = vae.encode(encode_decode[f"in.video.{size}"])
    torch.testing.assert_close(latent, encode_decode[f"out.encode_mode.{size}"], atol=ABSOLUTE, rtol=0)
    video = vae.decode(encode_decode[f"in.latent.{size}"])
    torch.testing.assert_close(video, encode_decode[f"out.decode.{size}"], atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("size", ["native", "resized"])
def test_moments_match_the_official_code(vae, encode_decode, size):
    mean, log_variance = vae.moments(encode_decode[f"in.video.{size}"])
    expected = encode_decode[f"out.moments.{size}"]
    torch.testing.assert_close(torch.cat([mean, log_variance], dim=1), expected, atol=ABSOLUTE, rtol=0)


def test_posterior_sample_matches_the_official_code(vae, encode_decode):
    mean, log_variance = vae.moments(encode_decode["in.video.native"])
    sample = mean + torch.exp(0.5 * log_variance) * encode_decode["in.posterior_noise.native"]
    torch.testing.assert_close(sample, encode_decode["out.encode_sample.native"], atol=ABSOLUTE, rtol=0)


def test_tiled_pipeline_matches_the_official_code(vae):
    case = manifest("i_vae_tiled_pipeline")
    golden = tensors("i_vae_tiled_pipeline")
    tiling = Tiling(frames=4, height=16, width=16, spatial_overlap=0.25)
    latent = vae.tiled_encode(golden["in.video_uint8"] / 127.5 - 1.0, tiling) * case["scale_factor"]
    torch.testing.assert_close(latent, golden["out.latents_scaled"], atol=ABSOLUTE, rtol=0)

    video = vae.tiled_decode(golden["in.model_latents"] / case["scale_factor"], tiling)[0].transpose(0, 1)
    torch.testing.assert_close(video, golden["out.frames_TCHW"], atol=ABSOLUTE, rtol=0)
    frames = (video * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    assert (frames.int() - golden["out.frames_uint8_TCHW"].int()).abs().max() <= 1

    temporal_only = Tiling(frames=4, height=256, width=256)
    video = vae.tiled_decode(golden["in.model_latents"] / case["scale_factor"], temporal_only)[0].transpose(0, 1)
    torch.testing.assert_close(video, golden["out.frames_temporal_tiles_only_TCHW"], atol=ABSOLUTE, rtol=0)


def test_one_tile_is_the_plain_decoder(vae, encode_decode):
    latent = encode_decode["in.latent.native"]
    assert torch.equal(vae.tiled_decode(latent, Tiling(frames=8, height=64, width=64)), vae.decode(latent))


def test_in_bfloat16_tiles_are_blended_in_float32(vae):
    """As on CUDA: the official code casts the VAE there."""
    golden = tensors("i_vae_tiled_pipeline")
    tiling = Tiling(frames=4, height=16, width=16, spatial_overlap=0.25)
    low = deepcopy(vae).bfloat16()
    for name, tensor in {
        "tiled_encode": golden["in.video_uint8"] / 127.5 - 1.0,
        "tiled_decode": golden["in.model_latents"],
    }.items():
        exact, rounded = getattr(vae, name)(tensor, tiling), getattr(low, name)(tensor, tiling)
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.03
    assert [_vae_type(torch.device(name)) for name in ("cuda", "cpu")] == [torch.bfloat16, torch.float32]


def test_bad_sizes_are_refused(vae):
    with pytest.raises(ValueError, match="multiple of 2"):
        vae.encode(torch.zeros(1, 3, 5, 16, 16))
    with pytest.raises(ValueError, match="multiple of 32"):
        VaeConfig(patch_size=4, patch_length=2, embed_dim=48)
    with pytest.raises(ValueError, match="norm_code"):
        VaeConfig(norm_code=True)
