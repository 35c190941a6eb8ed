"""(b) One chunk's forward by how much context it attends to, and by how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from experiments.benchmarks.gpu.subject import RUNS, Subject, inputs, timed
from experiments.job.job import Job
from flowcache.clock import SectionClock
from flowcache.kernels import ATTENTION_BACKENDS, AUTO, compile_seconds
from flowcache.method import Method
from flowcache.reuse.base import Decision


def forwards(subject: Subject, contexts: Sequence[int]) -> dict[str, Any]:
    """Milliseconds and TFLOP/s of a chunk that attends to itself and the chunks before it, ``context`` in all."""
    job = subject.job()
    model = job.load_model()
    return {"contexts": [{"context": context, **_forward(job, model, context)} for context in contexts], "runs": RUNS}


def kernels(subject: Subject, context: int) -> dict[str, Any]:
    """The same at one context by every attention backend, "math" left out, whose matrix would not fit; and compiled."""
    job = subject.job()
    model, backends = job.load_model(), {}
    for backend in (AUTO, *(name for name in ATTENTION_BACKENDS if name != "math")):
        try:
            model.set_kernels(backend)
            backends[backend] = _forward(job, model, context)
        except ValueError as error:
            backends[backend] = {"refused": str(error)}
    model.set_kernels(job.attention_backend)
    job = Subject((*subject.overrides, "compile=true")).job()
    before = compile_seconds()
    compiled = _forward(job, job.load_model(), context)
    return {"context": context, "backends": backends, "compiled": compiled, "compile_s": compile_seconds() - before}


@torch.inference_mode()
def _forward(job: Job, model: Any, context: int) -> dict[str, Any]:
    """In a row in which it is the newest, as the only one that computes; keys that no row has written are zeros."""
    method = Method()
    generation = model.generation(num_frames=model.frames_of(context), method=method, **inputs(job))
    generation.start(SectionClock("cpu"))
    row = next(row for row in generation.schedule.rows if row.chunks[-1] == context - 1 and row.steps[-1].step > 0)
    generation.begin_row(row)
    decision = Decision(row.chunks[-1:])
    flops = sum(work.flops for work in generation.compute(row, decision))
    spread = timed(lambda: generation.compute(row, decision), job.device)
    return {"seconds": asdict(spread), "flops": flops, "tflops_per_s": flops / spread.median / 1e12}
