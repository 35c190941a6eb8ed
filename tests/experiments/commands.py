"""What tests of commands share: the smallest job, what a command may say, and what it may leave behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

from eval.video_io import read_lossless
from experiments.records import Record, RecordStore

# One chunk of four steps, in this process.
SMALLEST = [
    "method=vanilla",
    "setting.num_frames=24",
    "setting.num_steps=4",
    "num_prompts=1",
    "metrics=[psnr]",
    "workers=1",
    "threads=1",
    "wandb.mode=disabled",
]


def check(outcome: tuple[int, str], code: int, message: str) -> None:
    """The code, and one line that says what is expected of it, beside one of what a checkpoint was recognised as."""
    found, said = outcome
    lines = [line for line in said.splitlines() if line and not line.startswith("checkpoint: ")]
    assert found == code, said
    assert len(lines) == 1, said
    assert lines[0].startswith("run.py: ")
    assert re.search(message, lines[0]), said
    assert "Traceback" not in said


def check_nothing_half_written(directory: Path) -> None:
    """No temporary file; every JSON file and every video can be read; a finished record has its video."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert not [path for path in files if ".partial" in path.name]
    for path in files:
        if path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".mkv":
            assert read_lossless(path).size
    assert all(RecordStore(directory).video_path(record.key).is_file() for record in finished(directory))


def finished(directory: Path) -> list[Record]:
    """Records that a rerun and the tables would take."""
    store = RecordStore(directory)
    return [record for record in store.all() if store.find(record.key) is not None]


def fails(error: BaseException):
    def fail(*args, **kwargs):
        raise error

    return fail
