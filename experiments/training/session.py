"""Worker processes, checkpoints and a log: what every training stage of the embedded models shares."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from eval.atomic import atomic_path
from experiments.run.environment import prepare
from experiments.training.optimiser import Optimiser


def run_workers(function: Callable[..., None], num_processes: int, *args: object) -> None:
    """Run function(*args) in ``num_processes`` processes of one thread each, connected by gloo; one runs in place."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if num_processes == 1:
        _worker(0, 1, port, function, args)
    else:
        torch.multiprocessing.spawn(_worker, (num_processes, port, function, args), nprocs=num_processes)


def _worker(rank: int, num_processes: int, port: int, function: Callable[..., None], args: tuple) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    prepare(threads=1)
    if num_processes > 1:
        # Left to itself the scheduler may stack workers on one core while another idles.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group("gloo", rank=rank, world_size=num_processes)
    try:
        function(*args)
    finally:
        dist.destroy_process_group()


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


class TrainingSession:
    """One stage's optimiser and random numbers, log lines to stdout and ``<name>.jsonl``, and a checkpoint that a
    killed run continues from.

    Args:
        directory: where log and checkpoint live.
        name: of the stage; names the files.
        model: trained, saved and restored.
        muon_in: prefixes of the parameters whose matrices Muon takes.
        recipe: of the stage; seed, num_steps, muon_lr, adam_lr and decay_fraction count here.
        save_every: steps between checkpoints.

    Attributes:
        generator, choice: random numbers of this worker; a continued run draws new ones.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        model: nn.Module,
        muon_in: tuple[str, ...],
        recipe: dict,
        save_every: int = 200,
    ) -> None:
        self.checkpoint = directory / f"{name}.pt"
        self.log_file = directory / f"{name}.jsonl"
        self.name, self.model, self.save_every = name, model, save_every
        self.optimiser = Optimiser(
            model,
            muon_in,
            muon_lr=recipe["muon_lr"],
            adam_lr=recipe["adam_lr"],
            num_steps=recipe["num_steps"],
            decay_fraction=recipe["decay_fraction"],
        )
        self.seconds_before = 0.0
        directory.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            if "optimiser" in state:  # not where the weights are only a start
                self.optimiser.load_state_dict(state["optimiser"])
                self.seconds_before = state["seconds"]
        rank = dist.get_rank() if dist.is_initialized() else 0
        seed = recipe["seed"] + 1000 * (rank + 1) + self.optimiser.step_count
        self.generator, self.choice = torch.Generator().manual_seed(seed), random.Random(seed)
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @property
    def finished(self) -> bool:
        return self.optimiser.step_count >= self.optimiser.num_steps

    def after_step(self, log_every: int, **figures: float) -> None:
        step = self.optimiser.step_count
        if not is_main():
            return
        if step % log_every == 0 or self.finished:
            line = {"step": step, "seconds": round(self.seconds, 1), **{k: round(v, 5) for k, v in figures.items()}}
            print(self.name, json.dumps(line), flush=True)
            with self.log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        if step % self.save_every == 0 or self.finished:
            self.save()

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "seconds": self.seconds}
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)
