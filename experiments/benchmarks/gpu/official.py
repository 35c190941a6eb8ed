"""(c, d) Rows of the official FlowCache code beside ours: milliseconds a row, on the same weights and decisions.

Both make the same video with the published switches, so that they do the same work: every row measures its distances
and then follows the same schedule. The official code is a checkout of the user's; none of it is here.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice, pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from eval.latency import Spread
from experiments.benchmarks.gpu.official_code import attention, import_official
from experiments.benchmarks.gpu.subject import Subject, inputs, wait
from experiments.benchmarks.gpu.videos import warm_up
from experiments.job.job import Job
from flowcache.kernels import attention_kernel
from flowcache.models.magi.text import chunk_captions
from flowcache.models.skyreels.checkpoint import diffusers_name
from flowcache.models.skyreels.window import all_times
from flowcache.models.wan.text import NEGATIVE_PROMPT
from flowcache.sampler import sample

# What our side does as the official code does it.
PUBLISHED = {
    "magi": ("forecast=displacement", "method.refresh_clean_kv=false", "method.near_clean=false"),
    "skyreels": ("method.refresh_clean_kv=false",),
}
WARMUP_ROWS = 2


@torch.inference_mode()
def beside_official(subject: Subject, checkout: str) -> dict[str, Any]:
    """Both sides' milliseconds a row, the first rows left out; and how far their latents end from each other.

    The subject's video has one window; on SkyReels-V2 it is guided and has ``corrector`` "published".
    """
    name = subject.config().model.name
    job, method = subject.job(), subject.method("flowcache_fast", *PUBLISHED[name])
    model = job.load_model()
    warm_up(job, model, method)
    generation = model.generation(num_frames=job.num_frames, method=method, **inputs(job))
    run = _Run(job, model, generation, method.reuse.computed, generation.latents.clone())
    marks = [wait(job.device)]
    chunks = [latent for _, latent in sample(generation, observe=lambda *_: marks.append(wait(job.device)))]
    ours, expected = _lengths_ms(marks), torch.cat(chunks, dim=1)
    names, rows = {"magi": (MAGI_MODULES, _magi_rows), "skyreels": (SKYREELS_MODULES, _skyreels_rows)}[name]
    modules, stand_ins = import_official(checkout, name, names)
    with attention_kernel(job.attention_backend), mock.patch("pdb.set_trace", _raise_again):
        for _ in islice(rows(run, *modules), WARMUP_ROWS):
            pass
        gc.collect()  # their objects refer to each other, and hold a KV cache
        marks, latents = [wait(job.device)], None
        for latents in rows(run, *modules):  # noqa: B007 - the last are compared
            marks.append(wait(job.device))
    official = _lengths_ms(marks)
    return {
        "rows": len(official),
        "ours_row_ms": asdict(Spread.of(ours)),
        "official_row_ms": asdict(Spread.of(official)),
        "ratio": sum(official) / sum(ours),
        "latents_relative_difference": float((latents - expected).norm() / expected.norm()),
        "stand_ins": stand_ins,
    }


def _raise_again() -> None:
    """Where the official code would wait in a debugger, inside ``except``."""
    raise


def _lengths_ms(marks: Sequence[float]) -> list[float]:
    return [1e3 * (after - before) for before, after in pairwise(marks[1:])]


@dataclass(frozen=True)
class _Run:
    """What the official code is to repeat: our generation, its first noise [1, C, f, h, w] and its decisions by row."""

    job: Job
    model: Any
    generation: Any
    computed: Sequence[Sequence[int]]
    noise: Tensor


# Of each model, a generator of the latents [C, f, h, w] after every row.

MAGI_MODULES = (
    "inference.common",
    "inference.model.dit",
    "inference.pipeline.video_generate",
    "inference.pipeline.flowcache",
)


def _magi_rows(run: _Run, common: Any, dit: Any, video: Any, flowcache: Any) -> Iterator[Tensor]:
    model, runtime, noise = run.model, run.generation.runtime, run.noise
    settings = common.MagiConfig(
        common.ModelConfig(model_name="", **_shared(common.ModelConfig, model.dit.config)),
        common.RuntimeConfig(**_shared(common.RuntimeConfig, runtime)),
        common.EngineConfig(
            distill=model.dit.config.distill,
            shortcut_mode=runtime.shortcut_mode,
            distill_nearly_clean_chunk_threshold=runtime.near_clean_threshold,
        ),
    )
    with torch.device("meta"):
        network = dit.VideoDiTModel(settings).eval()
    network.load_state_dict(model.dit.state_dict(), assign=True)
    num_chunks = run.generation.schedule.num_chunks
    features, mask = model.text_encoder(run.job.prompts[0])
    captions, masks = (
        torch.stack([tensor, torch.zeros_like(tensor)]).to(noise.device)  # no row reads the null caption
        for tensor in chunk_captions(features, mask, model.special_tokens, num_chunks, model.special_token_names)
    )
    asked = video.InferenceInput(
        caption_embs=captions[:1],
        emb_masks=masks,
        y=captions,
        prefix_video=None,
        latent_size=tuple(noise.shape),
        num_steps=runtime.num_steps,
        task_idx_list=[0],
        report_chunk_num_list=[num_chunks],
        chunk_num=num_chunks,
    )
    flowcache.setup_flowcache(discard_nearly_clean_chunk=True, compress_kv_cache=False)
    cache = flowcache.SampleTransport.cache_reuse_manager
    decide = cache.should_reuse

    def follow(chunk_id: int, step: int, **measured: Any) -> bool:
        decide(chunk_id=chunk_id, step=step, **measured)  # for its time
        return chunk_id not in run.computed[step]

    cache.should_reuse = follow
    with mock.patch("torch.distributed.get_rank", return_value=1):  # the first one shows its progress
        transport = video.SampleTransport(network, [asked], noise.device)
    transport.xs[0] = torch.cat([noise, noise])
    for row in run.generation.schedule.rows:
        transport.forward_velocity(0, row.index)
        transport.integrate_velocity(0, row.index)
        yield transport.xs[0][0]


def _shared(config: type, ours: Any) -> dict[str, Any]:
    """The fields that both have, under the same names."""
    return {f.name: getattr(ours, f.name) for f in fields(config) if hasattr(ours, f.name)}


SKYREELS_MODULES = (
    "skyreels_v2_infer.modules.transformer_flowcache",
    "skyreels_v2_infer.scheduler.fm_solvers_unipc",
)


class _Followed:
    """Stands in for the accumulated distances: beyond every threshold for chunks to compute, below it for others."""

    computed: Sequence[int] = ()

    def __getitem__(self, chunk: int) -> float:
        return math.inf if chunk in self.computed else -math.inf

    def __setitem__(self, chunk: int, distance: float) -> None:
        pass


def _skyreels_rows(run: _Run, code: Any, solvers: Any) -> Iterator[Tensor]:
    generation, noise, transformer = run.generation, run.noise, run.model.network.transformer
    config, dtype, sampling = transformer.config, run.model.network.dtype, generation.sampling
    num_chunks, block = generation.schedule.num_chunks, sampling.causal_block_size
    if noise.device.type == "cpu":
        code.flash_attention = attention  # theirs refuses CPU tensors
    with noise.device:
        network = code.WanModel(
            in_dim=config.in_channels,
            dim=config.num_attention_heads * config.attention_head_dim,
            out_dim=config.out_channels,
            num_heads=config.num_attention_heads,
            **{key: config[key] for key in ("patch_size", "ffn_dim", "freq_dim", "text_dim", "num_layers", "eps")},
            inject_sample_info=config.inject_sample_info,
        )
    weights = transformer.state_dict()
    network.load_state_dict({name: weights[diffusers_name(name)] for name in network.state_dict()})
    network.to(dtype).eval()
    network.initialize_asynchronous_teacache(True, sampling.num_steps, 0.0, True, "1.3B", sampling.num_steps)
    network.ret_steps, network.inference_steps = 1, sampling.num_steps
    network.group_size, network.num_groups = block, num_chunks
    followed = _Followed()
    for branch in ("even", "odd"):
        setattr(network, f"accumulated_rel_l1_distance_{branch}", followed)
        setattr(network, f"previous_e0_{branch}", [None] * num_chunks)
        setattr(network, f"previous_residual_{branch}", [None] * num_chunks)
        setattr(network, f"cnt_{branch}", [0] * num_chunks)
        setattr(network, f"skip_{branch}", [[] for _ in range(num_chunks)])
    schedulers = [
        solvers.FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        for _ in range(noise.shape[2])
    ]
    for scheduler in schedulers:
        scheduler.set_timesteps(sampling.num_steps, device=noise.device, shift=sampling.shift)
    table = torch.tensor(all_times(sampling), device=noise.device)
    captions = [run.model._encode(prompt).to(dtype) for prompt in (run.job.prompts[0], NEGATIVE_PROMPT)]
    latents, fps = noise.to(dtype, copy=True), [0 if sampling.fps == 16 else 1]
    for row in generation.schedule.rows:
        followed.computed = run.computed[row.index]
        times = table[torch.cat([generation.state.times(row, chunk) for chunk in generation.window.chunks])]
        active = torch.tensor([f // block in row.chunks for f in range(len(times))])
        with_prompt, without = (
            network(latents.clone(), t=times[None], context=caption, fps=fps, update_mask_i=active)[0]
            for caption in captions
        )
        velocity = without + sampling.guidance_scale * (with_prompt - without)
        for frame in active.nonzero().flatten().tolist():
            latents[0, :, frame] = schedulers[frame].step(
                velocity[:, frame], times[frame], latents[0, :, frame], return_dict=False
            )[0]
        yield latents[0]
