"""A full disk, a device without memory, a worker that dies: one clear message, a code, and nothing half-written."""

from __future__ import annotations

import errno
import re
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from experiments.job.errors import RunFailed
from experiments.run import sweep
from tests.experiments.commands import SMALLEST, check, check_nothing_half_written, fails, finished


class InductorError(RuntimeError):
    """Stands for torch's, whose module takes seconds to import."""


InductorError.__module__ = "torch._inductor.exc"


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


RUN = {
    "disk full while syncing": ("eval.atomic.os.fsync", full, "the disk is full .*output_dir="),
    "disk full while writing a video": (
        "experiments.run.runner.write_lossless",
        full,
        "the disk is full .*go on|goes on",
    ),
    "disk full while writing a preview": ("experiments.run.runner.write_mp4", full, "the disk is full"),
    "disk full while writing a trace": ("pandas.DataFrame.to_parquet", full, "the disk is full"),
    "disk full while writing a record": ("pathlib.Path.write_text", full, "the disk is full"),
    "disk full as Hydra notes its configuration": ("hydra.core.utils._save_config", full, "the disk is full"),
    "file system turned read-only": (
        "eval.atomic.os.replace",
        fails(OSError(errno.EROFS, "Read-only file system")),
        "no access .*output_dir=",
    ),
    "quota": ("eval.atomic.os.fsync", fails(OSError(errno.EDQUOT, "Disk quota exceeded")), "the disk is full"),
    "GPU out of memory": (
        "experiments.run.ranks.take",
        fails(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")),
        "GPU is out of memory .*Tried to allocate 2 GiB.*num_frames.*kv.budget.*workers=1.*device=",
    ),
    "GPU too small for the weights": (
        "experiments.job.job.load_model",
        fails(torch.OutOfMemoryError("CUDA out of memory.")),
        "the GPU is out of memory",
    ),
    "CPU out of memory": (
        "experiments.run.ranks.take",
        fails(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")),
        "memory ran out .*num_frames",
    ),
    "no compiler": (
        "experiments.run.ranks.take",
        fails(InductorError(RuntimeError("Failed to find C compiler."))),
        "compiling failed .*Failed to find C compiler.*compile=false",
    ),
    "worker killed": (
        "experiments.run.main_job.run_jobs",
        fails(BrokenProcessPool("terminated abruptly")),
        "a worker was killed, most likely because memory ran out .*workers=1",
    ),
    "any other error": (
        "experiments.run.ranks.take",
        fails(RuntimeError("broken\nin two lines")),
        "the run failed: RuntimeError: broken in two lines .debug=true shows where",
    ),
    "stopped by hand": (
        "experiments.run.ranks.take",
        fails(KeyboardInterrupt()),
        "stopped; .*the same command goes on",
    ),
}


@pytest.mark.parametrize(("place", "failure", "message"), RUN.values(), ids=RUN)
def test_a_run_that_fails(place, failure, message, command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(place, failure)
        outcome = command(*SMALLEST)
    check(outcome, 1, message)
    check_nothing_half_written(tmp_path / "results")
    assert finished(tmp_path / "results") == []
    if place == "eval.atomic.os.fsync":  # once there is room again, the same command completes the work
        assert command(*SMALLEST) == (0, "")
        assert len(finished(tmp_path / "results")) == 1
        check_nothing_half_written(tmp_path / "results")


def test_wandb_down_costs_no_video(command, tmp_path, monkeypatch):
    import wandb

    online = [argument for argument in SMALLEST if not argument.startswith("wandb")] + ["wandb.mode=online"]
    monkeypatch.setattr(wandb, "init", fails(wandb.errors.CommError("could not reach\nthe server")))
    assert command(*online) == (0, "")
    printed = " ".join(command.printed.split())  # the console breaks lines
    assert re.search("W&B: not logged .*could not reach the server.*records are whole, the same command", printed)
    assert len(finished(tmp_path / "results")) == 1
    check_nothing_half_written(tmp_path / "results")


def test_every_command_can_be_stopped_by_hand(monkeypatch, capsys):
    monkeypatch.setattr("experiments.run.sweep.find_jobs", fails(KeyboardInterrupt()))
    assert sweep.main(["debug=true"]) == 1
    said = "sweep: stopped; finished videos are kept, and the same command goes on from them\n"
    assert capsys.readouterr() == ("", said)


def test_debug_shows_where(command, monkeypatch):
    monkeypatch.setattr("experiments.run.ranks.take", fails(RuntimeError("broken")))
    with pytest.raises(RunFailed, match="broken") as caught:
        command(*SMALLEST, "debug=true")
    assert isinstance(caught.value.__cause__, RuntimeError)
