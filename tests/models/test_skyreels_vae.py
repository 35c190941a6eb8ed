"""The VAE through diffusers: chunks decode as the whole window does, and windows join through their last frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.models.wan.vae import FrameStream, WanVae
from tests.models.skyreels_pipeline import tiny_vae


@pytest.fixture(scope="module")
def vae() -> WanVae:
    return tiny_vae()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(vae: WanVae, latent: Tensor) -> Tensor:
    """diffusers' decoding of a window at once, with its statistics undone by hand."""
    mean, deviation = (
        torch.tensor(values).view(1, 16, 1, 1, 1)
        for values in (vae.vae.config.latents_mean, vae.vae.config.latents_std)
    )
    return vae.vae.decode(latent * deviation + mean).sample


@pytest.mark.parametrize("pieces", [[6], [2, 2, 2], [1, 1, 1, 1, 1, 1], [1, 5]])
@torch.inference_mode()
def test_pieces_decode_as_the_window_does(vae, pieces):
    latent = draw(1, 16, 6, 4, 4)
    decode = vae.decoder()
    frames = [decode(piece) for piece in latent.split(pieces, dim=2)]
    assert [piece.shape[2] for piece in frames] == [4 * n - 3 * (i == 0) for i, n in enumerate(pieces)]
    torch.testing.assert_close(torch.cat(frames, dim=2).clamp(-1, 1), whole(vae, latent), atol=5e-5, rtol=0)
    assert torch.cat(frames, dim=2).std() > 0.01


@torch.inference_mode()
def test_encoding_is_the_normalised_mean_of_diffusers_posterior(vae):
    frames = draw(1, 3, 9, 32, 32).clamp(-1, 1)
    latent = vae.encode(frames)
    assert latent.shape == (1, 16, 3, 4, 4)
    mean, deviation = torch.tensor(vae.vae.config.latents_mean), torch.tensor(vae.vae.config.latents_std)
    undone = latent * deviation.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(undone, vae.vae.encode(frames).latent_dist.mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 5, 9])
@torch.inference_mode()
def test_encoding_is_diffusers_to_the_bit(vae, num_frames):
    frames = draw(1, 3, num_frames, 32, 32)
    mean, deviation = vae._mean, vae._deviation
    assert torch.equal(vae.encode(frames), (vae.vae.encode(frames).latent_dist.mode() - mean) / deviation)


@torch.inference_mode()
def test_an_encoding_within_another_changes_neither(vae):
    """As two threads do, at a place where it shows for certain: between two pieces of four frames."""
    frames, others = draw(1, 3, 13, 32, 32), draw(1, 3, 9, 32, 32, seed=1)
    expected, within, calls = (vae.encode(frames), vae.encode(others)), [], []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            within.append(vae.encode(others))

    handle = vae.vae.encoder.conv_in.register_forward_hook(interrupt)
    outer = vae.encode(frames)
    handle.remove()
    assert torch.equal(outer, expected[0])
    assert torch.equal(within[0], expected[1])


def pixels(frames: Tensor) -> Tensor:
    return (frames[0] * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


def assert_pixels(actual: Tensor, expected: Tensor) -> None:
    """Of clips decoded in pieces of other sizes, so equal up to a level where rounding falls either way."""
    assert actual.dtype == expected.dtype == torch.uint8
    torch.testing.assert_close(actual.int(), expected.int(), atol=1, rtol=0)


@torch.inference_mode()
def test_the_next_window_begins_with_the_last_frames_encoded_again_and_shows_only_new_ones(vae):
    first, stream = draw(1, 16, 6, 4, 4), FrameStream(vae, overlap_frames=5)
    stream.open(None, emit=False)
    shown = torch.cat([stream.decode(chunk) for chunk in first.split(2, dim=2)])
    video = whole(vae, first)
    assert_pixels(shown, pixels(video))
    handed = stream.encode_last_frames()
    torch.testing.assert_close(handed, vae.encode(video[:, :, -5:]), atol=1e-5, rtol=0)

    new = draw(1, 16, 2, 4, 4, seed=1)
    stream.open(handed, emit=False)
    more = stream.decode(new)
    expected = whole(vae, torch.cat([handed, new], dim=2))
    assert_pixels(more, pixels(expected[:, :, 5:]))
    torch.testing.assert_close(stream.encode_last_frames(), vae.encode(expected[:, :, -5:]), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_window_shorter_than_the_overlap_reaches_back_to_the_frames_before(vae):
    history = draw(1, 3, 9, 32, 32).clamp(-1, 1)
    stream = FrameStream(vae, overlap_frames=9, history=history)
    given = vae.encode(history)
    stream.open(given, emit=False)
    new = draw(1, 16, 1, 4, 4)
    stream.decode(new)
    expected = torch.cat([history, whole(vae, torch.cat([given, new], dim=2))[:, :, 9:]], dim=2)[:, :, -9:]
    torch.testing.assert_close(stream.encode_last_frames(), vae.encode(expected), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_emitted_given_frames_come_before_the_next_chunks(vae):
    given, new, stream = draw(1, 16, 1, 4, 4), draw(1, 16, 1, 4, 4, seed=1), FrameStream(vae, 5)
    stream.open(given, emit=True)
    assert_pixels(stream.decode(new), pixels(whole(vae, torch.cat([given, new], dim=2))))
    assert len(stream.decode(new)) == 4


def test_a_vae_of_patches_is_refused():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=3, in_channels=12, out_channels=12, patch_size=2)
    with pytest.raises(ValueError, match=r"takes patches of pixels \(Wan 2.2\)"):
        WanVae(vae)
