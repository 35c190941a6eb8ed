"""The attention kernel is the one that was asked for, and compiled blocks compute what eager ones do."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention._registry import _FLASH_ATTENTION_IMPLS

from flowcache.kernels import FLASH_PACKAGES, attention_kernel, compile_seconds, set_kernels
from flowcache.kv.cache import KvCache
from flowcache.models.magi.attention import Member
from flowcache.models.magi.network import MagiDit
from flowcache.models.skyreels.network import SkyReelsNetwork
from tests.models import magi_goldens, skyreels_goldens


def magi_dit() -> MagiDit:
    return magi_goldens.golden_dit.__wrapped__("mlp_base")  # of its own: it is changed


def skyreels_network() -> SkyReelsNetwork:
    return SkyReelsNetwork(skyreels_goldens.transformer())


@torch.inference_mode()
def magi_velocities(dit: MagiDit) -> Tensor:
    """Of packs of one to three chunks, through a cache."""
    random = torch.Generator().manual_seed(0)
    latent, times = torch.randn(1, 16, 18, 4, 4, generator=random), torch.rand(1, 3, generator=random)
    caption, config = magi_goldens.null_caption(dit), dit.config
    cache = KvCache(config.num_layers, config.num_query_groups, config.kv_channels, 24, 3)
    members = [Member(position, caption) for position in range(3)]
    packs = ((latent[:, :, : 6 * n], dit.gates(times[:, :n]), members[:n]) for n in (1, 2, 3))
    return torch.cat([dit(*pack, cache) for pack in packs], dim=2)


@torch.inference_mode()
def skyreels_velocities(network: SkyReelsNetwork) -> Tensor:
    """Of windows of one, two and five chunks."""
    given = skyreels_goldens.tensors("forward")
    caption, times = network.caption(given["context"]), given["t_per_frame"][0]
    latent = given["latents"]
    return torch.cat([network.joint(latent[:, :, :n], times[:n], caption, block_size=2) for n in (2, 4, 10)], dim=2)


FAMILIES = [(magi_dit, magi_velocities), (skyreels_network, skyreels_velocities)]


@pytest.mark.parametrize(("make", "velocities"), FAMILIES, ids=["magi", "skyreels"])
def test_a_network_attends_by_the_kernel_asked_for(make, velocities):
    network, outs, fused = make(), [], []
    for backend in ("auto", "math", "flash"):
        network.attention_backend = backend
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            outs.append(velocities(network))
        operators = {event.key for event in profiler.key_averages()}
        fused.append("aten::_scaled_dot_product_flash_attention_for_cpu" in operators)
    assert fused == [True, False, True]
    for out in outs:
        torch.testing.assert_close(out, outs[0], atol=1e-4, rtol=1e-4)
    network.attention_backend = "cudnn"
    with pytest.raises(ValueError, match=r"attention_backend=cudnn cannot run this attention .*; choose auto"):
        velocities(network)


def test_other_errors_pass_through_and_the_choice_ends_with_the_block():
    query = torch.randn(1, 2, 3, 8)
    with pytest.raises(RuntimeError, match="Expected size"), attention_kernel("math"):
        query @ query
    with pytest.raises(ValueError, match="cudnn cannot run"), attention_kernel("cudnn"):
        F.scaled_dot_product_attention(query, query, query)
    assert F.scaled_dot_product_attention(query, query, query).shape == query.shape
    with pytest.raises(ValueError, match="attention_backend='triton' is unknown; choose auto or one of flash, fa3"):
        set_kernels(magi_dit(), "triton")


class Package:
    """Stands for a flash-attn package: torch asks it to put its kernel in place, and to take it away again."""

    def __init__(self) -> None:
        self.active = False

    def __call__(self) -> Package:
        self.active = True
        return self

    def remove(self) -> None:
        self.active = False


def test_a_flash_attn_package_runs_torchs_flash_attention_within_the_block_alone(monkeypatch):
    package, query = Package(), torch.randn(1, 2, 3, 8)
    monkeypatch.setitem(_FLASH_ATTENTION_IMPLS, "FA4", package)
    network = magi_dit()
    set_kernels(network, "fa4")
    assert network.attention_backend == "fa4"
    assert not package.active
    with attention_kernel("fa4"):
        assert package.active
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            F.scaled_dot_product_attention(query, query, query)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {event.key for event in profiler.key_averages()}
    assert not package.active
    words = "FA4 SDPA forward unsupported: FA4 requires compute capability 9.0 or 10.0"
    with pytest.raises(ValueError, match="attention_backend=fa4 cannot run this attention"), attention_kernel("fa4"):
        raise RuntimeError(words)
    assert not package.active
    for other in ("auto", "flash"):
        with attention_kernel(other):
            assert not package.active


@pytest.mark.parametrize(("backend", "package"), FLASH_PACKAGES.items())
def test_a_flash_attn_package_that_is_missing_is_named(backend, package):
    with pytest.raises(ValueError, match=f"attention_backend={backend} runs the package {package}, .*; install it, or"):
        set_kernels(magi_dit(), backend)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("make", "velocities"), FAMILIES, ids=["magi", "skyreels"])
def test_compiled_blocks_compute_what_eager_ones_do(make, velocities):
    from torch._dynamo.utils import counters

    network = make()
    expected = velocities(network)
    seconds, graphs = compile_seconds(), counters["stats"]["unique_graphs"]
    network.compile_blocks()
    torch.testing.assert_close(velocities(network), expected, atol=1e-5, rtol=1e-5)
    assert compile_seconds() > seconds
    # Three pieces of a block, whatever the layer; a pack of one chunk may take graphs of its own.
    assert 3 <= counters["stats"]["unique_graphs"] - graphs <= 6
