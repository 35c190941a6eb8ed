"""From a resolved configuration to the objects of a job, with every mistake found before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.job.check import check_types, check_whole_numbers, wandb_settings
from experiments.job.compose import baseline_method, named_method
from experiments.job.device import (
    MOST_THREADS,
    check_device,
    check_kernel,
    default_threads,
    default_workers,
    known_device,
)
from experiments.job.errors import BadInput
from experiments.job.method import make_method, name_of
from experiments.job.metrics import check_frame_size, read_metrics
from experiments.job.model import beside_checkpoint, checkpoint_of, find_checkpoint, load_model, random_sizes
from experiments.job.paths import check_writable, inside_root, results_folder
from experiments.job.prompts import read_prompts, refuse_unreadable
from experiments.job.ranks import check_ranks, device_of_rank, num_ranks, part_of
from flowcache.kernels import AUTO
from flowcache.method import Method
from flowcache.models.base import MOST_SEED
from flowcache.models.checkpoint import CheckpointError

RANDOM_MARK = " [random weights]"  # of the methods' names in every record of such weights


@dataclass(frozen=True)
class Job:
    """One model, one setting, one method, some prompts.

    ``generation_options`` are what the model's ``generation`` takes beyond prompt, frames, method and seed.
    ``files`` and ``loading`` are what the loader takes beside the checkpoint: other files, and options.
    ``label`` is what it is called: its method, and in a sweep the options that tell it from others of that method.
    ``random_weights`` is None where the weights are the checkpoint's; otherwise what the loader of random ones takes
    beside a checkpoint, whose configuration then counts, if there is one. ``plan`` is whether only the plan is told;
    None tells it before full-size videos, and False never. ``parallel`` is what the processes of torchrun share out, of
    which ``ranks`` make a video together.
    """

    model_name: str
    setting_name: str
    method_name: str
    method: Method
    prompts: tuple[str, ...]
    seed: int
    num_frames: int
    fps: int
    generation_options: dict[str, Any]
    checkpoint: Path | None
    files: dict[str, Path]
    loading: dict[str, Any]
    loader: str
    random_weights: dict[str, Any] | None
    device: str
    attention_backend: str
    compile: bool
    parallel: str
    ranks: int
    metrics: tuple[str, ...]
    baseline: str
    latency_pairs: int
    plan: bool | None
    workers: int
    threads: int
    output_dir: Path
    force: bool
    any_code: bool
    wandb: dict[str, Any]
    label: str

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a video's pixels, and what it is compared with, besides method, prompt, seed, weights, code."""
        return {
            "model": self.model_name,
            "setting": self.setting_name,
            "num_frames": self.num_frames,
            "device": torch.device(self.device).type,
            **self.generation_options,
            **({} if self.baseline == "vanilla" else {"baseline": self.baseline}),
            **(self.loading if self.random_weights is None else {"weights": "random", **self.random_weights}),
            **({} if self.attention_backend == AUTO else {"attention_backend": self.attention_backend}),
            **({"compile": True} if self.compile else {}),
            **({} if self.parallel == "none" else {"parallel": self.parallel, "ranks": self.ranks}),
        }

    @property
    def baseline_name(self) -> str:
        """In records, of the method that videos are compared with."""
        return self.baseline if self.random_weights is None else self.baseline + RANDOM_MARK

    @property
    def baseline_method(self) -> Method:
        return baseline_method(self.baseline, self.model_name, self.setting_name)

    @property
    def is_baseline(self) -> bool:
        return self.method == self.baseline_method

    def load_model(self) -> Any:
        """The model on the job's device, the same for all jobs of one checkpoint that follow each other.

        Raises BadInput for weights that are missing or wrong, and for a device that is not there.
        """
        check_device(self.device)
        random = None if self.random_weights is None else tuple(self.random_weights.items())
        beside, kernels = (*self.files.items(), *self.loading.items()), (self.attention_backend, self.compile)
        part = part_of(self.parallel)
        try:
            return load_model(self.loader, self.checkpoint, self.device, beside, random, *kernels, part)
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            raise BadInput(str(error)) from error


def make_job(config: DictConfig) -> Job:
    """Check a composed configuration and turn it into a Job. Raises BadInput with one clear message."""
    check_types(config)
    setting, model, options = config.setting, config.model, generation_options(config)
    device, prompts = known_device(config.device), read_prompts(config)
    check_ranks(config.parallel, device, config.workers)
    device, ranks = device_of_rank(device), num_ranks()
    check_kernel(config.attention_backend, device)
    shared_out = len(prompts) if ranks == 1 else 1  # processes of torchrun make one video at a time
    workers = default_workers(setting.embedded, device, shared_out) if config.workers is None else config.workers
    check_whole_numbers({"workers": workers, "setting.fps": setting.fps}, smallest=1)
    check_whole_numbers({"latency_pairs": config.latency_pairs})
    threads = default_threads(setting.embedded, device, workers * ranks) if config.threads is None else config.threads
    check_whole_numbers({"threads": threads}, smallest=1)
    if config.threads is not None and threads > max(MOST_THREADS, os.cpu_count() or 1):
        raise BadInput(f"threads={threads} on {os.cpu_count()} cores only makes them wait for each other; lower it")
    method = make_method(config)
    method_name = name_of(config, *named_method(config.method.name, model.name, setting.name))
    if config.replay is not None:
        from experiments.job.replay import read_decisions  # imported late: few jobs need pandas

        method = replace(method, reuse=read_decisions(inside_root(config.replay)))
        method_name += ", replayed"
    random_weights = random_sizes(config)
    if random_weights is not None:
        if method.reuse.looks_at is not None:
            raise BadInput(
                f"method {config.method.name} decides by {method.reuse.looks_at}, which random weights "
                "make meaningless; give the decisions of a real run, replay=<its trace>"
            )
        method_name += RANDOM_MARK
    baseline_method(str(config.baseline), model.name, setting.name)
    files, loading = beside_checkpoint(config)
    job = Job(
        model_name=model.name,
        setting_name=setting.name,
        method_name=method_name,
        method=method,
        prompts=prompts,
        seed=config.seed,
        num_frames=setting.num_frames,
        fps=setting.fps,
        generation_options=options,
        checkpoint=checkpoint_of(config) if random_weights is None else find_checkpoint(config),
        files=files,
        loading=loading,
        loader=model.loader if random_weights is None else model.random_loader,
        random_weights=random_weights,
        device=device,
        attention_backend=config.attention_backend,
        compile=config.compile,
        parallel=config.parallel,
        ranks=ranks,
        metrics=read_metrics(config.metrics),
        baseline=config.baseline,
        latency_pairs=config.latency_pairs,
        plan=config.plan,
        workers=workers,
        threads=threads,
        output_dir=results_folder(config.output_dir),
        force=bool(config.force),
        any_code=bool(config.any_code),
        wandb=wandb_settings(config),
        label=method_name,
    )
    if random_weights is None:
        refuse_unreadable(prompts, model.get("prompt_check"))
        if not job.is_baseline:
            check_frame_size(job.metrics, setting.height, setting.width)
    return job


def check_config(config: DictConfig, here: bool = True) -> None:
    """Refuse a job that could not even begin, before anything is written. Raises BadInput.

    Where it will not run ``here``, another machine may have the device.
    """
    if config.device == "meta":
        check_types(config)
        wandb_settings(config)
        make_method(config)
        generation_options(config)
    else:
        job = make_job(config)
        check_writable(job.output_dir)
        if here:
            check_device(job.device)


def generation_options(config: DictConfig) -> dict[str, Any]:
    """What the model's ``generation`` takes beyond prompt, frames, method and seed.

    Raises BadInput if the setting's numbers or the seed are no whole ones; the model's own options the model checks.
    Without a number of steps they are the checkpoint's.
    """
    setting = config.setting
    options = {} if setting.num_steps is None else {"num_steps": setting.num_steps}
    options |= {"height": setting.height, "width": setting.width}
    check_whole_numbers({"setting.num_frames": setting.num_frames, "seed": config.seed, **options})
    if config.seed > MOST_SEED:
        raise BadInput(f"seed={config.seed} is too large; choose 0 to {MOST_SEED}")
    own = OmegaConf.to_container(config.model.options)
    return options | {key: value for key, value in own.items() if value is not None}


def refuse_random_weights(job: Job, what: str) -> None:
    """Raise BadInput for a job of random weights: ``what`` (with its verb) means nothing of them."""
    if job.random_weights is not None:
        raise BadInput(f"weights=random: {what} nothing of random weights; give checkpoint=<directory>")
