"""What only a GPU can show, on embedded and random weights: `pytest -m gpu`. Without one these are skipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baselines.vanilla import VanillaConfig
from experiments.cli import compose_config
from experiments.job import ROOT, make_job
from experiments.plan import probe
from flowcache.models.checkpoint import load_weights
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.sampler import sample
from tests.experiments.conftest import SMALL

pytestmark = pytest.mark.gpu
EMBEDDED = ROOT / "experiments" / "embedded" / "magi"
PROMPT = "a red circle moving right on a dark background"


def latents(model: Magi) -> torch.Tensor:
    generation = model.generation(PROMPT, 48, VanillaConfig(), 0, num_steps=8)
    return torch.cat([latent for _, latent in sample(generation, VanillaConfig())], dim=1).cpu()


def test_the_gpu_makes_the_video_of_the_cpu():
    on_cpu, on_gpu = (latents(Magi.from_pretrained(EMBEDDED, device=device)) for device in ("cpu", "cuda"))
    assert (on_gpu - on_cpu).norm() / on_cpu.norm() < 1e-2


def test_text_encoder_and_vae_leave_nothing_on_the_gpu():
    model = Magi.from_pretrained(EMBEDDED, device="cuda")
    held = model.weights_bytes
    before = torch.cuda.memory_allocated()
    features, mask = model.text_encoder(PROMPT)
    assert features.is_cuda
    del features, mask
    assert torch.cuda.memory_allocated() == before
    parameters = [*model.vae.parameters(), *model.text_encoder.encoder.parameters()]
    assert {parameter.device.type for parameter in parameters} == {"cpu"}
    assert sum(p.nbytes for p in model.dit.parameters() if p.is_cuda) == held["transformer"]


def test_loading_to_the_gpu_takes_no_host_memory_beyond_a_shard(tmp_path):
    num_shards, elements = 8, 8 * 2**20
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        save_file({f"{shard}.weight": torch.ones(1, elements, dtype=torch.bfloat16)}, tmp_path / name)
    torch.zeros(1, device="cuda")
    with torch.device("meta"):
        layers = [torch.nn.Linear(elements, 1, bias=False, dtype=torch.bfloat16) for _ in range(num_shards)]
    module = torch.nn.ModuleList(layers)
    before = host_bytes()
    load_weights(module, tmp_path, "cuda")
    assert host_bytes() - before < 2 * 2 * elements
    assert all(layer.weight.is_cuda and layer.weight.eq(1).all() for layer in module)


def host_bytes() -> int:
    """Memory of this process's own, pages of files left out."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def test_rows_of_vanilla_never_wait_for_the_gpu():
    """The decision's read is the only one a row may have, and vanilla decides without."""
    model = Magi.from_pretrained(EMBEDDED, device="cuda")
    latents(model)  # what is set up once may wait
    generation = model.generation(PROMPT, 48, VanillaConfig(), 0, num_steps=8)
    compute, advance = generation.compute, generation.advance

    def unsynchronised(function):
        def call(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    generation.compute, generation.advance = unsynchronised(compute), unsynchronised(advance)
    assert len(list(sample(generation, VanillaConfig()))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", [Magi, SkyReels])
def test_networks_of_full_size_and_random_weights_run(family):
    model = family.from_random(device="cuda")
    options = {"num_steps": 4, "height": 256, "width": 256}
    generation = model.generation(PROMPT, model.frames_of(1), VanillaConfig(), 0, **options)
    for chunk, latent in sample(generation, VanillaConfig()):
        assert latent.isfinite().all()
        with torch.inference_mode():
            assert generation.decode(chunk, latent).shape[1:] == (256, 256, 3)


def test_a_probe_on_the_gpu_waits_for_what_it_times():
    job = make_job(compose_config([*SMALL, "method=vanilla", "device=cuda"]))
    probed = probe(job, job.load_model())
    assert min(probed.text_s, probed.rows_s, probed.decode_s) > 0
