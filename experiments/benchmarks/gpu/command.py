"""Everything that is measured on a GPU: ``python -m experiments.bench gpu [deadline_s=460] [cases=a,d_magi_vanilla]
[archive=gpu.zip] [official=<checkout>] [device=cuda] [output_dir=outputs]``.

Cases run in the order of their worth. With ``deadline_s`` (seconds from the program's start) none is begun that would
not end in time, by an estimate from the device's ceiling and then from what was measured; what runs over is broken off.
``cases`` are names of cases or the letters of their parts. ``archive`` packs all that is measured into one zip file,
after every case, and goes on from it where it is there already. ``official=`` is a checkout of the official FlowCache
code, whose rows are then timed beside ours. Also takes ``attention_backend=`` and ``compile=``, and any other of a
job's overrides, for all that it measures. ``device=cpu`` rehearses the command on small networks.

a: what the device alone can do. b: a chunk's forward by context and by kernel; guidance branches batched and in turn.
c: SkyReels-V2 videos, and diffusers' own pipeline. d: MAGI-1 videos at 16 steps, and an estimate at 64. e: compression
against the whole-matrix form. f: the same videos with a compressed cache. g: a video ten times as long. Weights are
random, decisions follow a schedule of the published compute. Every case is a file of its own in
``output_dir/gpu/<device>/``, written once it is whole; the same command again measures what is missing, or was measured
with other overrides, and writes the summary anew. ``publish=true`` then copies them into results/gpu/<device>/.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from eval.atomic import atomic_path
from experiments.benchmarks.gpu.archive import pack, unpack
from experiments.benchmarks.gpu.cases import PAPER, TINY, Case, all_cases
from experiments.benchmarks.gpu.deadline import RESERVE_S, OutOfTime, broken_off_at
from experiments.benchmarks.gpu.estimate import Estimates
from experiments.benchmarks.gpu.official_code import HOW_TO, check_checkout
from experiments.benchmarks.gpu.summary import Missing, write_summary
from experiments.benchmarks.options import whole_number
from experiments.job.cli import compose_config
from experiments.job.device import known_device
from experiments.job.errors import BadInput, CasesFailed, explain
from experiments.job.names import nearest
from experiments.job.paths import results_folder, shown
from experiments.records import library_hash
from experiments.run import environment
from experiments.show.results import PUBLISHED, publishing

OPTIONS = ("cases", "deadline_s", "archive", "device", "official", "publish")
BROKEN_OFF = "broken_off.json"  # seconds that cases ran before the deadline broke them off, by name


def run(
    overrides: Sequence[str],
    cases: str | None = None,
    deadline_s: str | None = None,
    archive: str | None = None,
    device: str = "cuda",
    official: str | None = None,
    publish: str = "false",
) -> None:
    """Measure what is missing and write the summary. Raises BadInput, and CasesFailed once all others are done."""
    asked, _ = publishing([f"publish={publish}"])
    device = known_device(device)
    on_gpu = device.startswith("cuda")
    ends = None
    if deadline_s is not None:
        ends = psutil.Process().create_time() + whole_number("deadline_s", deadline_s)
    if asked and not on_gpu:
        raise BadInput("publish=true: device=cpu only rehearses the command, on small networks; leave one of them out")
    if official is not None:
        check_checkout(official)
    given = [override for override in overrides if not override.startswith("output_dir=")]  # no matter to a case
    everything = list(all_cases(device, given, PAPER if on_gpu else TINY, official))
    chosen = everything if cases is None else choose(everything, cases)
    if official is None:
        print(f"the official code's rows are skipped; to time them too, {HOW_TO}", flush=True)
    if on_gpu and not torch.cuda.is_available():
        raise BadInput(
            f"bench gpu needs a CUDA device and torch {torch.__version__} sees none; run it on a machine with a GPU "
            "and a CUDA build of torch, or rehearse it with device=cpu"
        )
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    folder = results_folder(compose_config(list(overrides)).output_dir) / "gpu" / re.sub(r"\W+", "_", name)
    options = {"cases": cases, "deadline_s": deadline_s, "archive": archive, "official": official}
    if not on_gpu:
        options["device"] = device
    words = [*(f"{key}={value}" for key, value in options.items() if value is not None), *overrides]
    command = shlex.join(["python", "-m", "experiments.bench", "gpu", *words])
    limits = Limits(ends, None if archive is None else results_folder(archive), command, Estimates(device, name))
    measure(chosen, device, given, folder, limits)
    if asked:
        publish_cases(folder)


def choose(cases: Sequence[Case], text: str) -> list[Case]:
    """Those that are named, or whose part is, in the order of worth. Raises BadInput for an unknown name."""
    names, known = text.split(","), sorted({*(case.part for case in cases), *(case.name for case in cases)})
    for name in names:
        if name not in known:
            raise BadInput(f"cases={text}: {name!r} is no case and no part; {nearest(name, known)}")
    return [case for case in cases if case.name in names or case.part in names]


def publish_cases(folder: Path) -> None:
    """Copy a device's cases into results/gpu/, where the summary is then of all that are there."""
    published = PUBLISHED / "gpu" / folder.name
    shutil.copytree(folder, published, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BROKEN_OFF))
    write_summary(published)
    print(f"published in {shown(published)}")


@dataclass(frozen=True)
class Limits:
    """What a measurement is kept to, and how it is told.

    Attributes:
        ends: when it has to, as ``time.time()`` tells it; None is never.
        archive: a file of everything that was measured, or None.
        command: that goes on with what is missing.
    """

    ends: float | None = None
    archive: Path | None = None
    command: str = ""
    estimates: Estimates = field(default_factory=lambda: Estimates("cpu", "cpu"))

    def allow(self, seconds: float) -> bool:
        """Whether something of so many seconds would end in time."""
        return self.ends is None or time.time() + seconds <= self.ends - RESERVE_S


def measure(
    cases: Sequence[Case], device: str, overrides: Sequence[str], folder: Path, limits: Limits | None = None
) -> None:
    """Write every case's file that is not there yet and would be in time, then the summary of all that are."""
    limits = limits or Limits()
    folder.mkdir(parents=True, exist_ok=True)
    if limits.archive is not None and limits.archive.exists():
        unpack(limits.archive, folder)
    failures: list[tuple[str, Exception]] = []
    missing: dict[str, Missing] = {}
    left, estimates = [], limits.estimates
    ran = _read(folder / BROKEN_OFF)
    for case in cases:
        document = _read(folder / f"{case.name}.json")
        if (document.get("overrides"), document.get("code")) == (list(overrides), library_hash()):
            print(f"{case.name}: there already", flush=True)
            estimates.learn(case, document["wall_s"], document["figures"])
            continue
        left.append(case)
        if case.name in ran:
            estimates.overran(case, ran[case.name])
    for case in left:
        seconds = estimates.seconds(case) if limits.ends is not None else 0.0
        if not limits.allow(seconds):
            missing[case.name] = Missing(seconds, "no time was left")
            continue
        started = time.perf_counter()
        try:
            with broken_off_at(None if limits.ends is None else limits.ends - RESERVE_S):
                figures = case.measure()
        except BadInput:
            raise
        except OutOfTime:
            ran[case.name] = time.perf_counter() - started
            estimates.overran(case, ran[case.name])
            missing[case.name] = Missing(estimates.seconds(case), f"broken off after {ran[case.name]:.0f} s")
            _write(folder / BROKEN_OFF, ran)
            continue
        except Exception as error:  # one case must not cost the others
            failures.append((case.name, error))
            missing[case.name] = Missing(seconds, explain(error))
            print(f"{case.name}: {explain(error)}", flush=True)
            continue
        wall_s = round(time.perf_counter() - started, 1)
        document = {"overrides": list(overrides), "code": library_hash(), "wall_s": wall_s}
        document["environment"] = environment.describe(device)
        _write(folder / f"{case.name}.json", {**document, "figures": figures})
        estimates.learn(case, wall_s, figures)
        print(f"{case.name}: measured in {wall_s} s" + (f", estimated {seconds:.0f}" if seconds else ""), flush=True)
        if limits.archive is not None:
            pack(folder, limits.archive)
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
    print(write_summary(folder, missing, limits.command))
    print(f"written in {shown(folder)}")
    if limits.archive is not None:
        pack(folder, limits.archive)
        print(f"packed in {shown(limits.archive)}")
    if failures:
        raise CasesFailed(failures)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, document: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
