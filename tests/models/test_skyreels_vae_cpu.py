"""The quicker layers compute what diffusers' do, on their own and in the whole VAE."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm

from flowcache.models.wan.vae import WanVae
from flowcache.models.wan.vae_cpu import FusedNorm, PlaneConv, quicken

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


@pytest.mark.parametrize(("images", "shape"), [(False, (2, 5, 3, 4, 4)), (True, (2, 5, 4, 4))])
def test_the_norm_is_the_same_in_value_and_gradient(images, shape):
    torch.manual_seed(0)
    norm = WanRMS_norm(5, images=images)
    torch.nn.init.normal_(norm.gamma)
    fused = copy.deepcopy(norm)
    fused.__class__ = FusedNorm
    x = torch.randn(shape, requires_grad=True)
    weights = torch.randn(shape)
    expected, found = norm(x), fused(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for theirs, ours in zip(
        torch.autograd.grad((expected * weights).sum(), [x, norm.gamma]),
        torch.autograd.grad((found * weights).sum(), [x, fused.gamma]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(fused(torch.zeros(shape)), torch.zeros(shape))


@torch.inference_mode()
def test_a_quickened_vae_encodes_and_decodes_as_before():
    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    video, latent = torch.rand(1, 3, 9, 32, 32) * 2 - 1, torch.randn(1, 16, 3, 4, 4)
    expected = vae.encode(video).latent_dist.mean, vae.decode(latent).sample
    names = list(vae.state_dict())
    quicken(vae)
    assert not any(type(module) in (WanCausalConv3d, WanRMS_norm) for module in vae.modules())
    assert sum(isinstance(module, PlaneConv) for module in vae.modules()) > 20
    torch.testing.assert_close(vae.encode(video).latent_dist.mean, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latent).sample, expected[1], atol=1e-5, rtol=0)
    assert list(vae.state_dict()) == names


def test_only_vaes_on_a_cpu_are_taken_over():
    with torch.device("meta"):
        elsewhere = AutoencoderKLWan(base_dim=4)
    for vae, taken in ((AutoencoderKLWan(base_dim=4), True), (elsewhere, False)):
        WanVae(vae)
        assert any(isinstance(module, PlaneConv) for module in vae.modules()) == taken
