"""Kill, crowd and starve a sweep and compare what it leaves with an undisturbed one.

``python -m experiments.soak [--kills 30] [--seed 0]``: how often the sweep is killed, and the seed of the moments.

Three parts, each on the same small sweep of the embedded MAGI-1 (6 methods x 4 prompts, 2 chunks, 8 steps):

- kills: the sweep is killed (SIGKILL, with its workers) at random moments, again and again, then let finish;
- crowd: several processes run the same command on one store at once;
- full disk: files may not grow beyond a limit, as on a disk that is full in the middle of a write; then they may.

After each the records and the table made from them must equal the undisturbed sweep's, but for what is timed
(``experiments.records.TIMED``): none lost, none doubled, every file as its checksum says. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.job import errors
from experiments.job.experiment import jobs_of
from experiments.job.job import Job
from experiments.job.paths import ROOT
from experiments.records import RecordStore, untimed
from experiments.records.__main__ import runs
from experiments.show.ablations import settings_frame, table
from experiments.show.results import markdown

EXPERIMENT = "main_table"
SMALL = [
    "method=vanilla,every_k,teacache_slow,teacache_fast,flowcache_slow,flowcache_fast",
    "setting.num_frames=48",
    "setting.num_steps=8",
    "num_prompts=4",
    "metrics=[psnr,ssim]",
    "workers=2",
    "threads=1",
    "wandb.mode=disabled",
]
SHORTEST_LIFE_S = 3.0  # of a sweep that will be killed: less than it takes to start
LATEST_KILL = 0.6  # of an undisturbed sweep's time: later most sweeps that go on would have ended
FULL_BYTES = 16_384  # less than a video or a trace, more than a record
_TIMED_COLUMNS = (
    "latency_s",
    "latency_first_chunk_s",
    "fps",
    "speedup",
    "efficiency",
    "policy",
    "compression_share",
    "peak",
)


def command(directory: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "experiments.sweep",
        f"experiment={EXPERIMENT}",
        *SMALL,
        f"output_dir={directory}",
    ]


def start(directory: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """The sweep as a process group of its own."""
    log = (directory.parent / f"{directory.name}.log").open("a", encoding="utf-8")
    with log:
        return subprocess.Popen(
            command(directory),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            encoding="utf-8",
            start_new_session=True,
            preexec_fn=before,
        )


def contents(directory: Path) -> dict[str, Any]:
    """What a sweep has left, without what is timed: every record by key, and its table."""
    store = RecordStore(directory)
    found = list(runs(store))
    jobs = _jobs(directory)
    frame, told_by = settings_frame(jobs)
    frame = frame[[name for name in frame if not any(part in name for part in _TIMED_COLUMNS)]]
    described = table(frame, told_by, "Soak", jobs[0].baseline, "the same program")
    return {
        "states": sorted((run.key, run.state) for run in found),
        "records": {run.key: untimed(run.record) for run in found if run.record is not None},
        "damage": [problem for run in found if run.state == "finished" for problem in store.damage(run.record)],
        "table": markdown(described) + frame.to_csv(index=False),
    }


def _jobs(directory: Path) -> list[Job]:
    return jobs_of(EXPERIMENT, [*SMALL, f"output_dir={directory}"])[0]


def undisturbed(folder: Path) -> tuple[dict[str, Any], float]:
    """Contents of a sweep that was left alone, and the seconds it took."""
    started = time.monotonic()
    _finish(folder / "undisturbed")
    return contents(folder / "undisturbed"), time.monotonic() - started


def _finish(directory: Path) -> None:
    process = start(directory)
    if process.wait() != 0:
        raise SystemExit(f"soak: the sweep failed; see {directory.parent / directory.name}.log")


def kill_often(directory: Path, num_kills: int, longest_life_s: float, choice: random.Random) -> int:
    """Kill the sweep so many times, or until it ends first, and let it end. Returns the kills."""
    kills = 0
    while kills < num_kills:
        process = start(directory)
        try:
            process.wait(choice.uniform(SHORTEST_LIFE_S, longest_life_s))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    _finish(directory)
    return kills


def crowd(directory: Path, num_processes: int) -> None:
    """Several processes on one store."""
    processes = [start(directory) for _ in range(num_processes)]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"soak: of {num_processes} sweeps at once some failed, exit codes {codes}")


def fill_disk(directory: Path) -> tuple[int, int]:
    """Run into a disk that is full, then with room. Returns the first exit code, and the runs it left finished."""
    code = start(directory, _no_room).wait()
    left = sum(run.state == "finished" for run in runs(RecordStore(directory)))
    _finish(directory)
    return code, left


def _no_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead of the process


@errors.command("soak")
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.soak", description="A sweep under kills and crowds.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of killing")
    options = parser.parse_args(arguments)
    choice = random.Random(options.seed)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        expected, seconds = undisturbed(folder)
        print(f"undisturbed: {len(expected['records'])} runs in {seconds:.0f} s", flush=True)

        def compare(title: str, directory: Path) -> None:
            nonlocal wrong
            found = contents(directory)
            differing = [name for name, content in expected.items() if found[name] != content]
            wrong += bool(differing)
            print(f"{title}: {'differs in ' + ', '.join(differing) if differing else 'the same'}", flush=True)

        kills, sweeps = 0, 0
        while kills < options.kills:
            directory = folder / f"killed_{sweeps}"
            kills += kill_often(directory, options.kills - kills, LATEST_KILL * seconds, choice)
            sweeps += 1
            compare(f"{kills} kills so far, {sweeps} sweeps finished after them", directory)
        for num_processes in (2, 4):
            directory = folder / f"crowd_{num_processes}"
            crowd(directory, num_processes)
            compare(f"{num_processes} processes at once", directory)
        code, left = fill_disk(folder / "full")
        compare(f"full disk (exit code {code}, {left} finished by then), then room", folder / "full")
    print("soak: all the same" if not wrong else f"soak: {wrong} parts differ")
    return 1 if wrong else 0
