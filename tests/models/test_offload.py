"""Text encoder and VAE in host memory: the same results, and nothing left on the device."""

from __future__ import annotations

import sys
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.magi import Magi
from flowcache.models.offload import Visits, is_short
from flowcache.models.skyreels import SkyReels
from tests.methods import chunkwise
from tests.models.skyreels_pipeline import write_checkpoint

METHOD = chunkwise(threshold=0.015, warmup_steps=2)


def places(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("inference", [True, False])
def test_a_visit_moves_weights_there_and_back(inference):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    home, given = places(module), torch.randn(2, 3)
    expected = module(given)
    visits = Visits(module, "cpu")
    with torch.inference_mode(inference):
        with visits, visits:
            away = places(module)
            result = module(given)
        assert set(away).isdisjoint(home)
        assert places(module) == home
        assert torch.equal(result, expected)
        with pytest.raises(RuntimeError, match="broken"), visits:
            raise RuntimeError("broken")
    assert places(module) == home


def test_visits_of_several_threads_overlap():
    """Whoever comes second finds the weights there, and whoever leaves first leaves them there."""
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))
    home, visits, strays = set(places(module)), Visits(module, "cpu"), []

    def work() -> None:
        for _ in range(100):
            with visits:
                strays.append(len(home & set(places(module))))

    threads, interval = [Thread(target=work) for _ in range(4)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert strays == [0] * 400
    assert set(places(module)) == home


def test_magi_offloaded_makes_the_same_frames_and_leaves_nothing():
    checkpoint = ROOT / "experiments" / "embedded" / "magi"
    frames = []
    for offload in (False, True):
        model = Magi.from_pretrained(checkpoint, offload=offload)
        before = places(model.vae), places(model.text_encoder.encoder)
        frames.append(torch.cat(list(generate(model, "a red circle", 24, METHOD, num_steps=4))))
        assert (places(model.vae), places(model.text_encoder.encoder)) == before
    assert torch.equal(*frames)
    assert isinstance(model.vae.presence, Visits)
    assert isinstance(model.text_encoder.presence, Visits)


def test_skyreels_offloaded_makes_the_same_frames_and_leaves_nothing(tmp_path):
    write_checkpoint(tmp_path)
    frames = []
    for offload in (False, True):
        model = SkyReels.from_pretrained(tmp_path, offload=offload)
        before = places(model.vae.vae), places(model.text_encoder.encoder)
        frames.append(torch.cat(list(generate(model, "a red circle", 13, METHOD))))
        assert (places(model.vae.vae), places(model.text_encoder.encoder)) == before
    # On the CPU the VAE that stays has its slow layers exchanged, which rounds differently.
    assert (frames[0].int() - frames[1].int()).abs().max() <= 1
    assert isinstance(model.vae.presence, Visits)
    assert isinstance(model.text_encoder.presence, Visits)


@pytest.mark.parametrize(("gib", "short"), [(24, True), (48, True), (80, False), (139, False)])
def test_networks_leave_a_gpu_of_little_memory_alone(gib, short, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gib * 2**30))
    assert is_short(torch.device("cuda")) is short
    assert not is_short(torch.device("cpu"))


@pytest.mark.parametrize("most_gib", [8, 0])
def test_what_waits_for_a_gpu_is_pinned_up_to_a_limit(most_gib, monkeypatch):
    pinned = []
    monkeypatch.setattr("flowcache.models.offload.PINNED_GIB", most_gib)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor.clone())
    module = nn.Linear(3, 2)
    Visits(module, "cuda")
    assert pinned == ([module.weight.shape, module.bias.shape] if most_gib else [])
