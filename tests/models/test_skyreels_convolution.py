"""Convolving plane by plane is diffusers' causal convolution, on its own and in the whole VAE."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from flowcache.models.skyreels.convolution import PlaneConv, convolve_planes
from flowcache.models.skyreels.vae import SkyReelsVae

KINDS = {
    "3x3x3": {"kernel_size": 3, "padding": 1},
    "in time": {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)},
    "in time, every second": {"kernel_size": (3, 1, 1), "stride": (2, 1, 1)},
    "pointwise": {"kernel_size": 1},
    "wider than high": {"kernel_size": (2, 1, 3), "padding": (1, 0, 1)},
}


@pytest.mark.parametrize("remembered", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_planes_equal_the_three_dimensional_convolution(kind, remembered):
    torch.manual_seed(0)
    conv = WanCausalConv3d(3, 4, **KINDS[kind])
    if conv._padding[4] < remembered:
        pytest.skip("this kernel does not reach back so far")
    planes = copy.deepcopy(conv)
    planes.__class__ = PlaneConv
    x = torch.randn(2, 3, 5, 6, 7, requires_grad=True)
    cache = torch.randn(2, 3, remembered, 6, 7) if remembered else None
    expected, found = conv(x, cache), planes(x, cache)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weights = torch.randn(expected.shape)
    for theirs, ours in zip(
        torch.autograd.grad((expected * weights).sum(), [x, conv.weight, conv.bias]),
        torch.autograd.grad((found * weights).sum(), [x, planes.weight, planes.bias]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_vae_of_planes_encodes_and_decodes_as_before():
    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    video, latent = torch.rand(1, 3, 9, 32, 32) * 2 - 1, torch.randn(1, 16, 3, 4, 4)
    expected = vae.encode(video).latent_dist.mean, vae.decode(latent).sample
    names = list(vae.state_dict())
    convolve_planes(vae)
    assert sum(isinstance(module, PlaneConv) for module in vae.modules()) > 20
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latent).sample, expected[1], atol=1e-5, rtol=0)
    assert list(vae.state_dict()) == names


def test_only_vaes_on_a_cpu_are_taken_over():
    with torch.device("meta"):
        elsewhere = AutoencoderKLWan(base_dim=4)
    for vae, taken in ((AutoencoderKLWan(base_dim=4), True), (elsewhere, False)):
        SkyReelsVae(vae)
        assert any(isinstance(module, PlaneConv) for module in vae.modules()) == taken
