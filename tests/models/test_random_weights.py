"""Random weights: every parameter made where it is used, in its type, and no depth overflows."""

from __future__ import annotations

import pytest
import torch

from experiments.job.paths import ROOT
from flowcache.models.magi import Magi
from flowcache.models.magi.config import DitConfig
from flowcache.models.magi.network import MagiDit
from flowcache.models.random_weights import fill_random
from flowcache.models.skyreels import SkyReels
from flowcache.models.wan import Wan
from flowcache.sampler import sample
from tests.methods import vanilla
from tests.models.skyreels_pipeline import write_checkpoint
from tests.models.wan_files import write_diffusers


def test_weights_are_repeatable_and_keep_their_types():
    sizes = {"num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 2}
    config = DitConfig(**sizes, num_query_groups=1, kv_channels=32, caption_channels=16, params_dtype=torch.bfloat16)
    made = []
    for seed in (0, 0, 1):
        with torch.device("meta"):
            network = MagiDit(config)
        types = {name: parameter.dtype for name, parameter in network.named_parameters()}
        fill_random(network, "cpu", seed)
        made.append(network.state_dict())
        assert {name: parameter.dtype for name, parameter in network.named_parameters()} == types
        assert len(set(types.values())) == 2
        assert not any(parameter.requires_grad for parameter in network.parameters())
    first, again, other = made
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x_embedder.weight"], other["x_embedder.weight"])


@pytest.mark.parametrize("family", ["magi", "skyreels", "wan"])
def test_generations_of_random_weights_stay_finite(family, tmp_path):
    if family == "magi":
        model = Magi.from_random(checkpoint=ROOT / "experiments" / "embedded" / "magi", caption_tokens=5)
        options = {"num_steps": 4}
    elif family == "skyreels":
        model, options = SkyReels.from_random(checkpoint=write_checkpoint(tmp_path)), {}
    else:
        model, options = Wan.from_random(checkpoint=write_diffusers(tmp_path)), {"height": 64, "width": 64}
    generation = model.generation("anything", model.frames_of(2), vanilla(), 0, **options)
    with torch.inference_mode():
        for chunk, latent in sample(generation):
            assert latent.isfinite().all()
            assert generation.decode(chunk, latent).dtype == torch.uint8
    assert set(model.weights_bytes) == {"transformer", "VAE"}
    assert all(size > 0 for size in model.weights_bytes.values())


@pytest.mark.parametrize("loader", [Magi.from_random, SkyReels.from_random, Wan.from_random])
def test_unknown_sizes_are_refused(loader):
    with pytest.raises(ValueError, match=r"size='5B' is no released .*; there are"):
        loader(size="5B")
