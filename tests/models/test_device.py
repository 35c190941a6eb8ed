"""Where models are loaded to: a name that works loads, and any other is refused for what it is."""

from __future__ import annotations

import pytest
import torch

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.device import usable_device
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from tests.methods import chunkwise

EMBEDDED = ROOT / "experiments" / "embedded"
LOADERS = [(Magi.from_pretrained, "magi", 24), (SkyReels.from_pretrained, "skyreels", 17)]


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cpu:3", torch.device("cpu", 1)])
def test_there_is_one_cpu(name):
    assert usable_device(name) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device='gpu' is unknown to torch; choose cpu, cuda or cuda:<index>"),
        ("meta", "device='meta' holds no weights; choose cpu or cuda, or count without weights: on_meta"),
        ("cuda:97", r"device='cuda:97' is not usable on this machine \(.+\); choose cpu"),
    ],
)
def test_other_devices_are_refused_for_what_they_are(name, message):
    with pytest.raises(ValueError, match=message):
        usable_device(name)
    for load, family, _ in LOADERS:
        with pytest.raises(ValueError, match=message):
            load(EMBEDDED / family, device=name)
        with pytest.raises(ValueError, match=message):
            load(EMBEDDED / family, text_device=name)
    for model in (Magi, SkyReels):
        with pytest.raises(ValueError, match=message):
            model.from_random(device=name)


@pytest.mark.parametrize(("load", "family", "num_frames"), LOADERS)
def test_a_model_on_cpu_0_is_one_on_cpu(load, family, num_frames):
    method = chunkwise(threshold=0.1, warmup_steps=1)
    videos = []
    for device in ("cpu", "cpu:0"):
        model = load(EMBEDDED / family, device=device)
        videos.append(torch.cat(list(generate(model, "a red circle", num_frames, method, num_steps=8))))
    assert torch.equal(*videos)
