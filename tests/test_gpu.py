"""What only a GPU can show, on embedded and random weights: `pytest -m gpu`. Without one these are skipped."""

from __future__ import annotations

import gc
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from experiments.benchmarks.gpu.micro import TINY, micro
from experiments.job.cli import compose_config
from experiments.job.job import make_job
from experiments.job.paths import ROOT
from experiments.run.measure import quality
from experiments.run.plan import probe
from flowcache.kernels import ATTENTION_BACKENDS, AUTO, FLASH_PACKAGES
from flowcache.models.checkpoint import load_weights
from flowcache.models.magi import Magi
from flowcache.models.magi.attention import ParallelAttention
from flowcache.models.magi.config import DitConfig
from flowcache.models.skyreels import SkyReels
from flowcache.reuse.distance import DistanceMeter
from flowcache.sampler import sample
from tests.experiments.conftest import SMALL
from tests.fetched import needs_vgg
from tests.methods import chunkwise, vanilla
from tests.models.skyreels_pipeline import write_checkpoint

pytestmark = pytest.mark.gpu
EMBEDDED = ROOT / "experiments" / "embedded" / "magi"
PROMPT = "a red circle moving right on a dark background"


def latents(model: Magi) -> torch.Tensor:
    generation = model.generation(PROMPT, 48, vanilla(), 0, num_steps=8)
    return torch.cat([latent for _, latent in sample(generation)], dim=1).cpu()


def test_the_gpu_makes_the_video_of_the_cpu():
    on_cpu, on_gpu = (latents(Magi.from_pretrained(EMBEDDED, device=device)) for device in ("cpu", "cuda"))
    assert (on_gpu - on_cpu).norm() / on_cpu.norm() < 1e-2


def test_text_encoder_and_vae_leave_nothing_on_the_gpu():
    model = Magi.from_pretrained(EMBEDDED, device="cuda")
    held = model.weights_bytes
    model.text_encoder(PROMPT)  # libraries keep their workspaces
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
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


REUSE = chunkwise(threshold=0.05, warmup_steps=1)
COMPRESSED = chunkwise(threshold=0.05, warmup_steps=1, budget="1 chunk")


@pytest.fixture(params=["magi", "skyreels"])
def model(request, tmp_path):
    if request.param == "magi":
        return Magi.from_pretrained(EMBEDDED, device="cuda")
    return SkyReels.from_random(checkpoint=write_checkpoint(tmp_path), device="cuda")


def generation_of(model, method):
    """Of four chunks in one window of eight steps."""
    options = {"base_num_frames": 29} if isinstance(model, SkyReels) else {}
    return model.generation(PROMPT, model.frames_of(4), method, 0, num_steps=8, **options)


@pytest.mark.parametrize("method", [vanilla(), REUSE, COMPRESSED], ids=["vanilla", "reuse", "compressed"])
def test_rows_wait_for_the_gpu_once_at_most_for_the_decision(model, method, monkeypatch):
    """Whatever a row computes, compresses and advances, the host goes on; a measured decision reads once."""
    list(sample(generation_of(model, method)))  # what is set up once may wait
    generation, measure = generation_of(model, method), DistanceMeter.measure

    def unsynchronised(function):
        def call(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return call

    reads = []

    def measured(meter, row):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            distances = measure(meter, row)
            torch.cuda.set_sync_debug_mode("default")
        reads.append(sum("synchronizing" in str(warning.message) for warning in caught))
        assert reads[-1] == bool(distances)
        return distances

    monkeypatch.setattr(DistanceMeter, "measure", measured)
    for name in ("begin_row", "compute", "advance", "finish"):
        monkeypatch.setattr(generation, name, unsynchronised(getattr(generation, name)))
    assert len(list(sample(generation))) == 4
    assert any(reads) == (method.reuse.distance is not None)


def made(model) -> torch.Tensor:
    method = vanilla()
    return torch.cat([latent for _, latent in sample(generation_of(model, method))], dim=1)


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out - expected).norm() / expected.norm()).item()


def test_the_projection_of_bfloat16_is_that_of_float32():
    """The official model casts both to float32 first; products of bfloat16 numbers are exact in it."""
    config = DitConfig(
        num_layers=1,
        hidden_size=256,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=64,
        params_dtype=torch.bfloat16,
    )
    layer = ParallelAttention(config, 0).cuda()
    parts = torch.randn(2, 1, 500, config.query_width, device="cuda").bfloat16()
    with torch.inference_mode():
        out = layer._join(*parts)
        layer.linear_proj.float()
        expected = layer._join(*parts)
    assert out.dtype == torch.float32
    assert distance(out, expected) < 1e-6


def test_attention_backends_agree(model):
    """To the rounding of eight steps, in what types the models have; one that cannot run these says so."""
    out = {}
    for backend in (AUTO, *ATTENTION_BACKENDS):
        try:
            model.set_kernels(backend)
            out[backend] = made(model)
        except ValueError as error:
            assert "cannot run this attention" in str(error) or backend in FLASH_PACKAGES  # noqa: PT017 - none must
    assert {"auto", "math"} <= out.keys()
    for backend, latent in out.items():
        assert distance(latent, out["math"]) < 0.1, backend


@pytest.mark.slow
def test_compiled_blocks_agree_on_the_gpu(model):
    expected = made(model)
    model.set_kernels(compiled=True)
    assert distance(made(model), expected) < 0.1


def test_the_ceilings_of_the_gpu_are_measured():
    found = micro("cuda", replace(TINY, square=4096, copied_bytes=2**28))
    assert 10 < found["matmul_tflops"] < 5000
    assert 100 < found["copy_gb_per_s"] < 20_000
    assert not any("refused" in part for part in found.values() if isinstance(part, dict))


@pytest.mark.slow
@pytest.mark.parametrize("family", [Magi, SkyReels])
def test_networks_of_full_size_and_random_weights_run(family):
    model = family.from_random(device="cuda")
    options = {"num_steps": 4, "height": 256, "width": 256}
    if family is Magi:
        assert {parameter.dtype for parameter in model.vae.parameters()} == {torch.bfloat16}
    generation = model.generation(PROMPT, model.frames_of(1), vanilla(), 0, **options)
    for chunk, latent in sample(generation):
        assert latent.isfinite().all()
        with torch.inference_mode():
            assert generation.decode(chunk, latent).shape[1:] == (256, 256, 3)


def test_a_probe_on_the_gpu_waits_for_what_it_times():
    job = make_job(compose_config([*SMALL, "method=vanilla", "device=cuda"]))
    probed = probe(job, job.load_model())
    assert min(probed.text_s, probed.rows_s, probed.decode_s) > 0


@pytest.mark.parametrize("name", ["ssim", "lpips", pytest.param("lpips_vgg", marks=needs_vgg)])
def test_metrics_on_the_gpu_are_those_of_the_cpu_and_leave_nothing_there(name):
    noise = np.random.default_rng(0)
    reference = noise.integers(0, 256, (3, 96, 112, 3), np.uint8)
    video = np.clip(reference.astype(int) + noise.integers(-40, 41, reference.shape), 0, 255).astype(np.uint8)
    measured = {}
    for device in ("cpu", "cuda", "cuda"):  # libraries keep their workspaces from the first time on
        before = torch.cuda.memory_allocated()
        measured[device], notes = quality(video, reference, (name,), device)
        assert not notes
        gc.collect()  # torchmetrics' objects refer to themselves
    assert torch.cuda.memory_allocated() == before
    assert measured["cuda"][name] == pytest.approx(measured["cpu"][name], rel=1e-5)
