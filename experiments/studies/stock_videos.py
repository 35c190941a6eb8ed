"""Videos of a stock SkyReels-V2 pipeline of diffusers, plain, with diffusers' own caches, and with the suite's methods.

Needs diffusers. Every cache is put on for one video and taken off after it, so that none sees another's state.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

from eval.atomic import atomic_path
from eval.called_flops import counted
from eval.caption_score import score
from eval.lpips import lpips
from eval.psnr import psnr
from eval.ssim import ssim
from experiments.job.job import Job
from experiments.records import weights_id
from experiments.records.code import code_hash
from experiments.records.identity import code_modules
from flowcache.integrations.diffusers import apply_flowcache, register_blocks
from flowcache.method import Method
from flowcache.models.skyreels.checkpoint import read_sampling
from flowcache.models.skyreels.config import Sampling

STOCK = "stock pipeline"
_MEASURED_BY = ("called_flops", "caption_score", "lpips", "psnr", "ssim")
_OF_THE_CALL = ("guidance_scale", "ar_step", "causal_block_size", "base_num_frames", "overlap_history")


@dataclass(frozen=True)
class Row:
    """What is put on the pipeline.

    Attributes:
        name: of diffusers' cache, of the suite's method, or STOCK.
        options: of the cache or the method, beside its own.
        method: of the suite; None is diffusers' own or nothing.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    method: Method | None = None


@dataclass(frozen=True)
class Made:
    """A video.

    Attributes:
        frames: uint8 [F, H, W, 3].
        flops: that the transformer executed.
        calls: of the transformer, those of all guidance branches.
        seconds: of the whole call: the process's own on a CPU, which others on the machine do not lengthen.
    """

    frames: np.ndarray
    flops: int
    calls: int
    seconds: float


class Stock:
    """The pipeline of a job's checkpoint at its setting; what the job does not say is diffusers' own default.

    Args:
        calibration_prompt: that MagCache's ratios are measured on.
    """

    def __init__(self, job: Job, calibration_prompt: str) -> None:
        self.job, self._calibration_prompt = job, calibration_prompt
        options = {name: value for name, value in job.generation_options.items() if name in vars(Sampling())}
        self.sampling = replace(read_sampling(job.checkpoint), **options)
        diffusers.utils.logging.disable_progress_bar()
        dtype = torch.float32 if torch.device(job.device).type == "cpu" else torch.bfloat16
        self.pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(job.checkpoint, dtype=dtype).to(job.device)
        self.pipe.set_progress_bar_config(disable=True)
        register_blocks()

    def video(self, row: Row, prompt: str) -> Made:
        on_cpu = torch.device(self.job.device).type == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        with self._applied(row), counted(self.pipe.transformer) as counter:
            started = clock()
            frames = self._called(prompt)
            seconds = clock() - started
        return Made(frames, counter.flops, counter.calls, seconds)

    def figures(self, row: Row, made: Made, stock: Made, prompt: str) -> dict[str, Any]:
        """Of a row's video against the stock pipeline's of the same prompt."""
        chunk = 4 * self.sampling.causal_block_size
        figures = {"name": row.name, "options": row.options, "prompt": prompt}
        figures |= {"flops": made.flops, "seconds": made.seconds}
        figures |= {"stock_flops": stock.flops, "stock_seconds": stock.seconds}
        figures["caption_right"] = score(made.frames, prompt, chunk, chunk - 3).right
        if row.name != STOCK:
            for metric in (psnr, ssim, lpips):
                figures[metric.__name__] = metric(made.frames, stock.frames)
        return figures

    def kept(self, row: Row, prompt: str) -> Path:
        """The file of a row's figures: what was asked for and the code that answers name it."""
        return self._file({"row": row.name, "options": row.options, "prompt": prompt}, row.method or Method())

    @property
    def code(self) -> str:
        """Of the pipeline, the hooks and what measures; the methods' own comes on top."""
        return self._code_of(Method())

    @cached_property
    def magnitudes(self) -> dict[str, Any]:
        """Of MagCache, by its own calibration: how many ``rows`` a video has, and ``ratios``, one a row."""
        path = self._file({"calibration": self._calibration_prompt}, Method())
        if not path.is_file():
            branches = 1 + (self.sampling.guidance_scale > 1)
            rows = self.video(Row(STOCK), self._calibration_prompt).calls // branches
            config = diffusers.MagCacheConfig(calibrate=True, num_inference_steps=rows)
            said = io.StringIO()
            with self._enabled(config), redirect_stdout(said):
                self._called(self._calibration_prompt)
            lists = [ast.literal_eval(line) for line in said.getvalue().splitlines() if line.startswith("[1.0")]
            save(path, {"rows": rows, "ratios": lists[0]})  # the prompt's branch ends first
        return json.loads(path.read_text(encoding="utf-8"))

    def _called(self, prompt: str) -> np.ndarray:
        """A call of the pipeline: uint8 [F, H, W, 3]."""
        sampling = self.sampling
        torch.manual_seed(self.job.seed)  # what the pipeline draws beside the generator
        frames = self.pipe(
            prompt,
            num_frames=self.job.num_frames,
            height=sampling.height,
            width=sampling.width,
            num_inference_steps=sampling.num_steps,
            generator=torch.Generator().manual_seed(self.job.seed),
            output_type="np",
            **{name: getattr(sampling, name) for name in _OF_THE_CALL},
        ).frames[0]
        return (frames * 255).round().astype(np.uint8)

    @contextmanager
    def _applied(self, row: Row) -> Iterator[None]:
        if row.method is not None:
            with apply_flowcache(self.pipe, row.method):
                yield
        elif row.name == STOCK:
            yield
        else:
            config = getattr(diffusers, f"{row.name}Config")(**row.options, **self._beside(row))
            with self._enabled(config):
                yield

    @contextmanager
    def _enabled(self, config: Any) -> Iterator[None]:
        self.pipe.transformer.enable_cache(config)
        try:
            yield
        finally:
            self.pipe.transformer.disable_cache()

    def _beside(self, row: Row) -> dict[str, Any]:
        """Of a cache's config, what fits it to this pipeline."""
        if row.name == "MagCache":
            return {"num_inference_steps": self.magnitudes["rows"], "mag_ratios": self.magnitudes["ratios"]}
        if row.name == "TaylorSeerCache":  # its default patterns match no layer here; the lite mode has its own
            patterns = None if row.options.get("use_lite_mode") else [r"^blocks\..*\.attn\d$"]
            return {"cache_identifiers": patterns, "taylor_factors_dtype": self.pipe.dtype}
        if row.name == "PyramidAttentionBroadcast":  # asks for one timestep, and every frame has its own
            return {"current_timestep_callback": lambda: float(self.pipe.current_timestep.float().mean())}
        return {}

    def _code_of(self, method: Method) -> str:
        modules = [*code_modules(self.job, method), *(f"eval.{name}" for name in _MEASURED_BY)]
        return code_hash([*modules, "flowcache.integrations.diffusers.apply", __name__])

    def _file(self, asked: dict[str, Any], method: Method) -> Path:
        job = self.job
        identity = {
            **asked,
            "sampling": asdict(self.sampling),
            "num_frames": job.num_frames,
            "seed": job.seed,
            "device": torch.device(job.device).type,
            "weights": weights_id(job),
            "code": self._code_of(method),
            "diffusers": diffusers.__version__,
            "method": method.described(),
            "calibration_prompt": self._calibration_prompt,
        }
        name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:20]
        return job.output_dir / "stock_caches" / f"{name}.json"


def save(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def made_or_kept(stock: Stock, rows: Sequence[Row], prompt: str) -> Iterator[dict[str, Any]]:
    """Figures of every row on a prompt, in their order; those that are there already are not made again.

    The stock pipeline's own video is made first wherever any is missing: the others are compared with it, and timed in
    turn with it.
    """
    plain = None
    for row in rows:
        path = stock.kept(row, prompt)
        if not path.is_file():
            if plain is None:
                plain = stock.video(Row(STOCK), prompt)
            made = plain if row.name == STOCK else stock.video(row, prompt)
            save(path, stock.figures(row, made, plain, prompt))
        yield json.loads(path.read_text(encoding="utf-8"))
