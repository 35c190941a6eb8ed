"""The dry run, ``python run.py device=meta``: the sampler on shapes alone, and the compute that they add up to.

No weights, no memory, no video. A method that decides by distances cannot decide without weights: it is counted as if
it never reused, or with the decisions of a real run (``replay=<its trace>``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import Job, generation_options
from experiments.job.method import make_method
from experiments.job.model import find_checkpoint
from experiments.job.paths import inside_root
from experiments.job.replay import read_decisions
from experiments.job.units import flops_text
from experiments.run.quick_shapes import QuickShapes
from experiments.show.kv_memory import kv_text
from experiments.show.reported import read_reported
from flowcache.method import VANILLA, Method
from flowcache.models.checkpoint import CheckpointError
from flowcache.reuse.never import Never
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from flowcache.schedule import Schedule
from flowcache.trace import Trace

PFLOP = 1e15
KINDS = {
    "denoise": "chunks being denoised",
    "near_clean": "near-clean copies of the oldest chunk",
    "context": "chunks beside them, in forwards without cache",
    "refresh": "finished chunks, once more when clean",
    "prefix": "given chunks",
    "reuse": "what reusing chunks still compute",
    "compression": "scoring finished chunks' keys",
    "caption": "captions",
    "time": "timesteps",
}


@dataclass(frozen=True)
class Count:
    """What one generation would do: its schedule, its trace, and its FLOPs in the paper's accounting."""

    schedule: Schedule
    trace: Trace
    paper_flops: int


@dataclass(frozen=True)
class DryRun:
    """Outcome of a dry run.

    Attributes:
        method, vanilla: the method's count, and that of the model as published.
        looks_at: what the method decides by beyond the schedule; None if by nothing.
        replayed: the recording whose decisions were followed, if any.
    """

    method: Count
    vanilla: Count
    looks_at: str | None
    replayed: Path | None


def dry_run(config: DictConfig, console: Console | None = None) -> DryRun:
    """Count a composed configuration's method, and vanilla beside it, and print both. Raises BadInput."""
    started = time.perf_counter()
    method = make_method(config)
    replayed = None if config.replay is None else inside_root(config.replay)
    decisions = None if replayed is None else read_decisions(replayed).computed  # repeating costs what a forecast does
    counted = count(config, method, decisions)
    vanilla = counted if method == VANILLA and decisions is None else count(config, VANILLA)
    outcome = DryRun(counted, vanilla, method.reuse.looks_at, replayed)
    print_dry_run(config, outcome, time.perf_counter() - started, console or Console())
    return outcome


def count(config: DictConfig, method: Method, decisions: Sequence[Sequence[int]] | None = None) -> Count:
    """Run one generation on shapes.

    Args:
        decisions: for every row the chunks to compute. None are the method's own; where it decides by distances, every
            chunk is then computed.
    """
    model = partial(_model, config.model.on_meta, find_checkpoint(config))
    return _count(model, config.setting.num_frames, method, config.seed, generation_options(config), decisions)


def vanilla_flops(job: Job) -> int:
    """Of a video of the job's setting, as the model is published."""
    on_meta = compose_config([f"model={job.model_name}"]).model.on_meta
    model = partial(_model, {**on_meta, **(job.random_weights or {})}, job.checkpoint)
    return _count(model, job.num_frames, VANILLA, job.seed, job.generation_options).trace.flops


def _count(
    load_model: Callable[[], Any],
    num_frames: int,
    method: Method,
    seed: int,
    options: dict[str, Any],
    decisions: Sequence[Sequence[int]] | None = None,
) -> Count:
    try:
        if decisions is not None:
            method = replace(method, reuse=Replay(computed=decisions))
        elif method.reuse.looks_at is not None:
            method = replace(method, reuse=Never())
        model, trace = load_model(), Trace()
        with QuickShapes():
            generation = model.generation("any prompt", num_frames, method, seed, **options)
            for _ in sample(generation, trace):
                pass
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        raise BadInput(str(error)) from error
    return Count(generation.schedule, trace, generation.paper_flops(trace))


def _model(on_meta: Mapping[str, Any], checkpoint: Path | None) -> Any:
    options = {key: value for key, value in on_meta.items() if key != "_target_"}
    return _build(on_meta["_target_"], tuple(options.items()), checkpoint)


@lru_cache(maxsize=1)
def _build(target: str, options: tuple[tuple[str, Any], ...], checkpoint: Path | None) -> Any:
    return get_object(target)(**dict(options), checkpoint=checkpoint)


def print_dry_run(config: DictConfig, outcome: DryRun, seconds: float, console: Console) -> None:
    """The table, and what its figures rest on."""
    counted, vanilla = outcome.method, outcome.vanilla
    name, published = config.method.name, read_reported(config.model.name)[0]["pflops"]
    table = Table(title=f"{config.model.name} / {config.setting.name} / {name}: dry run, nothing was computed")
    table.add_column("compute of one video")
    table.add_column("FLOPs", justify="right")
    table.add_column("of vanilla's", justify="right")

    def add(title: str, flops: float, of: float) -> None:
        table.add_row(title, flops_text(flops), f"{flops / of:.3f}")

    at_most = ", at most" if outcome.looks_at is not None and outcome.replayed is None else ""
    add(f"executed{at_most}", counted.trace.flops, vanilla.trace.flops)
    for kind, flops in sorted(counted.trace.flops_by_kind().items(), key=lambda item: -item[1]):
        add(f"  {KINDS.get(kind, kind)}", flops, vanilla.trace.flops)
    add(f"in the paper's accounting{at_most}", counted.paper_flops, vanilla.paper_flops)
    if name in published:
        add("reported by the paper, in its setting", published[name] * PFLOP, published["vanilla"] * PFLOP)
    console.print(table)
    if outcome.replayed is not None:
        console.print(f"Decisions are those recorded in {outcome.replayed}.", markup=False)
    elif outcome.looks_at is not None:
        console.print(
            f"{name} decides by {outcome.looks_at}, which need weights: what it would reuse is not known "
            "here, and every chunk step was counted as computed, the most it can take. With weights, a run records "
            "its decisions; replay=<trace> counts them."
        )
    entries = counted.trace.entries
    computed = sum(entry.action == "compute" for entry in entries)
    console.print(
        f"{computed} of {len(entries)} chunk steps computed ({counted.trace.computed_fraction:.3f}); "
        f"KV cache {kv_text(counted.trace.kv_bytes_by_use, 2**30, 'GiB')}"
    )
    checkpoint = find_checkpoint(config)
    network = OmegaConf.to_container(config.model.on_meta)
    described = ", ".join(f"{key} {value}" for key, value in network.items() if key != "_target_")
    console.print(
        f"Counted from shapes in {seconds:.1f} s: the transformer's matrix products, multiply-add = 2. Network "
        f"(model.on_meta): {described if checkpoint is None else f'as configured in {checkpoint}'}"
    )
