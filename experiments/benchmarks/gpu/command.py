"""Everything that is measured on a GPU: ``python -m experiments.bench gpu [parts=a,b,c,d,e,f,g] [output_dir=outputs]``.

``official=`` is a checkout of the official FlowCache code, whose rows are then timed beside ours. Also takes
``attention_backend=`` and ``compile=``, and any other of a job's overrides, for all that it measures.

a: ceilings, of matrix products and of copies. b: a chunk's forward by context and by kernel; guidance branches batched
and in turn. c: SkyReels-V2 videos, and diffusers' own pipeline. d: MAGI-1 videos at 16 steps, and an estimate at 64. e:
compression against the whole-matrix form. f: the same videos with a compressed cache. g: a video ten times as long.
Weights are random, decisions follow a schedule of the published compute. Every case is a file of its own in
``output_dir/gpu/<device>/``, written once it is whole; the same command again measures what is missing, or was measured
with other overrides, and writes the summary anew. ``publish=true`` then copies them into results/gpu/<device>/.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.atomic import atomic_path
from experiments.benchmarks.gpu.ceilings import ceilings
from experiments.benchmarks.gpu.compression import compression
from experiments.benchmarks.gpu.diffusers_pipeline import beside_diffusers
from experiments.benchmarks.gpu.forward import forwards, kernels
from experiments.benchmarks.gpu.guidance import branches
from experiments.benchmarks.gpu.official import beside_official
from experiments.benchmarks.gpu.official_code import HOW_TO, check_checkout
from experiments.benchmarks.gpu.subject import Subject
from experiments.benchmarks.gpu.summary import write_summary
from experiments.benchmarks.gpu.videos import long_video, sampled_video, video
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput, CasesFailed, explain
from experiments.job.paths import results_folder, shown
from experiments.records import library_hash
from experiments.run import environment
from experiments.show.results import PUBLISHED, publishing

OPTIONS = ("parts", "official", "publish")
PARTS = "abcdefg"
BUDGET = "kv.budget=1 chunk"
MAGI = ("model=magi", "setting=paper", "setting.num_steps=16")
MAGI_64 = ("model=magi", "setting=paper")
SKYREELS = ("model=skyreels", "setting=paper")
# A chunk at a time in one window of ten, in one guidance branch.
SKYREELS_ALONE = (
    *SKYREELS,
    "model.options.ar_step=50",
    "model.options.base_num_frames=197",
    "model.options.guidance_scale=1",
)
# One window, beside the official code.
SKYREELS_WINDOW = (*SKYREELS, "setting.num_frames=97", "model.options.corrector=published")
# 100 chunks of 4 steps each, on smaller frames so that it ends in minutes.
MAGI_LONG = (
    "model=magi",
    "setting=paper",
    "setting.num_steps=4",
    "setting.num_frames=2400",
    "setting.height=480",
    "setting.width=480",
)


@dataclass(frozen=True)
class Case:
    """What one file holds; ``name`` begins with its part's letter."""

    name: str
    measure: Callable[[], dict[str, Any]]

    @property
    def part(self) -> str:
        return self.name[0]


def all_cases(device: str, overrides: Sequence[str], official: str | None = None) -> Iterator[Case]:
    """In each part what matters most comes first. The official code's rows need a checkout of it."""

    def subject(setting: tuple[str, ...]) -> Subject:
        return Subject((*setting, f"device={device}", *overrides))

    yield Case("a_ceilings", partial(ceilings, device))
    for model, setting in (("magi", MAGI), ("skyreels", SKYREELS_ALONE)):
        yield Case(f"b_{model}_forward", partial(forwards, subject(setting)))
        yield Case(f"b_{model}_kernels", partial(kernels, subject(setting)))
    yield Case("b_skyreels_branches", partial(branches, subject(SKYREELS)))
    for method in ("flowcache_fast", "vanilla", "vanilla_kv", "flowcache_slow", "vanilla_causal"):
        yield Case(f"c_skyreels_{method}", partial(video, subject(SKYREELS), method))
    yield Case("c_skyreels_diffusers", partial(beside_diffusers, subject(SKYREELS)))
    if official is not None:
        yield Case("c_skyreels_official", partial(beside_official, subject(SKYREELS_WINDOW), official))
    for method in ("flowcache_fast", "vanilla", "flowcache_slow"):
        yield Case(f"d_magi_{method}", partial(video, subject(MAGI), method))
    for method in ("flowcache_fast", "vanilla"):
        yield Case(f"d_magi_64_{method}", partial(sampled_video, subject(MAGI_64), method))
    if official is not None:
        yield Case("d_magi_official", partial(beside_official, subject(MAGI), official))
    yield Case("e_compression", partial(compression, device))
    for model, setting in (("magi", MAGI), ("skyreels", SKYREELS)):
        yield Case(f"f_{model}_flowcache_fast", partial(video, subject(setting), "flowcache_fast", BUDGET))
    yield Case("g_magi_long", partial(long_video, subject(MAGI_LONG)))


def run(
    overrides: Sequence[str], parts: str = ",".join(PARTS), official: str | None = None, publish: str = "false"
) -> None:
    """Measure what is missing and write the summary. Raises BadInput, and CasesFailed once all others are done."""
    asked, _ = publishing([f"publish={publish}"])
    unknown = [part for part in parts.split(",") if part not in tuple(PARTS)]
    if unknown:
        raise BadInput(f"parts={parts}: {unknown[0]!r} is none of {', '.join(PARTS)}; give for example parts=a,b")
    if official is not None:
        check_checkout(official)
    else:
        print(f"the official code's rows are skipped; to time them too, {HOW_TO}", flush=True)
    if not torch.cuda.is_available():
        raise BadInput(
            f"bench gpu needs a CUDA device and torch {torch.__version__} sees none; run it on a machine with a GPU "
            "and a CUDA build of torch"
        )
    folder = results_folder(compose_config(list(overrides)).output_dir) / "gpu"
    overrides = [override for override in overrides if not override.startswith("output_dir=")]  # no matter to a case
    name = re.sub(r"\W+", "_", torch.cuda.get_device_name())
    cases = [case for part in parts.split(",") for case in all_cases("cuda", overrides, official) if case.part == part]
    measure(cases, "cuda", overrides, folder / name)
    if asked:
        publish_cases(folder / name)


def publish_cases(folder: Path) -> None:
    """Copy a device's cases into results/gpu/, where the summary is then of all that are there."""
    published = PUBLISHED / "gpu" / folder.name
    shutil.copytree(folder, published, dirs_exist_ok=True)
    write_summary(published)
    print(f"published in {shown(published)}")


def measure(cases: Sequence[Case], device: str, overrides: Sequence[str], folder: Path) -> None:
    """Write every case's file that is not there yet, then the summary of all that are."""
    failures: list[tuple[str, Exception]] = []
    for case in cases:
        path = folder / f"{case.name}.json"
        if _is_measured(path, overrides):
            print(f"{case.name}: there already", flush=True)
            continue
        started = time.perf_counter()
        try:
            figures = case.measure()
        except BadInput:
            raise
        except Exception as error:  # one case must not cost the others
            failures.append((case.name, error))
            print(f"{case.name}: {explain(error)}", flush=True)
            continue
        wall_s = round(time.perf_counter() - started, 1)
        document = {"overrides": list(overrides), "code": library_hash(), "wall_s": wall_s}
        document["environment"] = environment.describe(device)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({**document, "figures": figures}, indent=1) + "\n", encoding="utf-8")
        print(f"{case.name}: measured in {wall_s} s", flush=True)
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
    if folder.is_dir():
        print(write_summary(folder))
        print(f"written in {shown(folder)}")
    if failures:
        raise CasesFailed(failures)


def _is_measured(path: Path, overrides: Sequence[str]) -> bool:
    """By the same command and the same code."""
    if not path.is_file():
        return False
    document = json.loads(path.read_text(encoding="utf-8"))
    return (document["overrides"], document.get("code")) == (list(overrides), library_hash())
