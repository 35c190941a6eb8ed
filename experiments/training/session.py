"""Worker processes, checkpoints and a log: what every training stage of the embedded models shares."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from eval.atomic import atomic_path
from experiments.environment import prepare
from experiments.training.optimiser import Optimiser


def run_workers(function: Callable[..., None], num_processes: int, *args: object) -> None:
    """Run function(*args) in ``num_processes`` processes of one thread each, connected by gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (num_processes, port, function, args), nprocs=num_processes)


def _worker(rank: int, num_processes: int, port: int, function: Callable[..., None], args: tuple) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    prepare(threads=1)
    # Left to itself the scheduler may stack workers on one core while another idles.
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % len(os.sched_getaffinity(0))]})
    dist.init_process_group("gloo", rank=rank, world_size=num_processes)
    function(*args)
    dist.destroy_process_group()


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


class TrainingSession:
    """Log lines to stdout and ``log.jsonl``, and a checkpoint that a killed run continues from.

    Args:
        directory: where log and checkpoint live.
        name: of the stage; names the files.
        model, optimiser: saved and restored.
        save_every: steps between checkpoints.
    """

    def __init__(
        self, directory: Path, name: str, model: nn.Module, optimiser: Optimiser, save_every: int = 200
    ) -> None:
        self.checkpoint = directory / f"{name}.pt"
        self.log_file = directory / f"{name}.jsonl"
        self.name, self.model, self.optimiser, self.save_every = name, model, optimiser, save_every
        self.seconds_before = 0.0
        directory.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.seconds_before = state["seconds"]
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
            with self.log_file.open("a") as log:
                log.write(json.dumps(line) + "\n")
        if step % self.save_every == 0 or self.finished:
            self.save()

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "seconds": self.seconds}
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)
