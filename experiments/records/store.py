"""The folder of runs: a directory a video, found by its key, and who is making it.

A record is written whole or not at all. Whoever makes a video holds the lock of its directory, which the system lets
go of when the holder dies: several processes, on one machine or several with a shared file system that has locks, drain
one list of videos and none is made twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from eval.atomic import atomic_path, sync_folder
from experiments.records.checksum import sha256
from experiments.records.identity import video_of
from experiments.records.record import SCHEMA_VERSION, Record, plain

if TYPE_CHECKING:  # the records are listed and checked without torch
    from pydantic import TypeAdapter

    from experiments.job.job import Job

LOCK_POLL_S = 1.0
_KEY = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")  # see identity.py


class RecordStore:
    """A folder of runs.

    Args:
        directory: of the runs; made when the first is saved.
        any_code: whether ``find`` also takes a video that other code made, if today's made none.
    """

    def __init__(self, directory: Path, any_code: bool = False) -> None:
        self.directory, self.any_code = directory, any_code

    def run_path(self, key: str) -> Path:
        return self.directory / "runs" / key

    def record_path(self, key: str) -> Path:
        return self.run_path(key) / "record.json"

    def video_path(self, key: str) -> Path:
        """Lossless, for metrics."""
        return self.run_path(key) / "video.mkv"

    def preview_path(self, key: str) -> Path:
        """Small, for people."""
        return self.run_path(key) / "video.mp4"

    def latents_path(self, key: str) -> Path:
        """There only where a metric that was asked for compares them."""
        return self.run_path(key) / "latents.safetensors"

    def trace_path(self, key: str) -> Path:
        return self.run_path(key) / "trace.parquet"

    def find(self, key: str) -> Record | None:
        """A finished record whose files are all there, or None. A damaged record counts as none.

        Of the records that ``any_code`` allows beside the key's own, the last to be finished.
        """
        found = self.finished(key)
        if found is None and self.any_code:
            others = (self.finished(path.name) for path in self.run_path("").glob(f"{video_of(key)}-*"))
            found = max(filter(None, others), key=lambda record: record.changed or "", default=None)
        return found

    def finished(self, key: str) -> Record | None:
        """As ``find``, of this key alone."""
        record = self.read(key)
        if record is None or record.status != "finished":
            return None
        return record if all((self.run_path(key) / name).is_file() for name in record.artifacts) else None

    def damage(self, record: Record) -> list[str]:
        """What is wrong with a finished record's files."""
        wrong = []
        for name, expected in record.artifacts.items():
            path = self.run_path(record.key) / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
            elif sha256(path) != expected:
                wrong.append(f"{name} is not what was written")
        return wrong

    def read(self, key: str) -> Record | None:
        """A record in whatever state; None if there is none, or it is damaged, of another schema or key."""
        try:
            text = self.record_path(key).read_text(encoding="utf-8")
            Record(**json.loads(text))  # which refuses fields that there are none of
            record = _fields().validate_json(text, strict=True)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
            return None
        return record if record.schema_version == SCHEMA_VERSION and record.key == key else None

    def schema(self, key: str) -> int | None:
        """The version of the schema that a record was written in; None where it does not say."""
        try:
            version = json.loads(self.record_path(key).read_text(encoding="utf-8"))["schema_version"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return version if isinstance(version, int) else None

    def save(self, record: Record) -> Path:
        """Write the record; a finished one gets the checksums of the files that it has."""
        if record.status == "finished":
            paths = (self.video_path, self.preview_path, self.trace_path, self.latents_path)
            files = (path_of(record.key) for path_of in paths)
            record.artifacts = {path.name: sha256(path) for path in files if path.is_file()}
        record.changed = datetime.now(UTC).isoformat(timespec="seconds")
        return self.amend(record)

    def amend(self, record: Record) -> Path:
        """Write a record of which only what is said of its video is new: date and checksums stay as they are."""
        path = self.record_path(record.key)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plain(asdict(record)), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return path

    @contextmanager
    def finishing(self, record: Record) -> Iterator[RecordStore]:
        """Give a store aside for the files of a running record; once the block ends without an error, they and the
        record, then finished, take the place of what is there.

        Everything is written before anything is replaced, so that a failure keeps an older video. Then its record gives
        way to one that says running, the files follow and the finished record comes last: a kill in between leaves a
        run to be made again, never a record of other files.
        """
        run = self.run_path(record.key)
        run.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=run, prefix=".", suffix=".partial") as folder:
            aside = RecordStore(Path(folder))
            yield aside
            record.status = "finished"
            aside.save(record)
            self.save(replace(record, status="running", artifacts={}))
            for path in (*map(aside.run_path(record.key).joinpath, record.artifacts), aside.record_path(record.key)):
                os.replace(path, run / path.name)
            if self.latents_path(record.key).name not in record.artifacts:  # an older video's
                self.latents_path(record.key).unlink(missing_ok=True)
            sync_folder(run)

    def queue(self, record: Record) -> None:
        """Note that a video is wanted, where nothing is known of it yet and nobody is making it."""
        if self.read(record.key) is None:
            with self.claim(record.key, wait=False) as mine:
                if mine and self.read(record.key) is None:
                    self.save(record)

    def withdraw(self, key: str) -> None:
        """Forget that a video is wanted, where nobody has begun it."""
        if self._is_queued(key):
            with self.claim(key, wait=False) as mine:
                if mine and self._is_queued(key):
                    shutil.rmtree(self.run_path(key), ignore_errors=True)

    def _is_queued(self, key: str) -> bool:
        record = self.read(key)
        return record is not None and record.status == "queued"

    @contextmanager
    def claim(self, key: str, wait: bool) -> Iterator[bool]:
        """Be the only one to make a video. Gives False, at once, if another is at it and ``wait`` is not asked for."""
        self.run_path(key).mkdir(parents=True, exist_ok=True)
        lock = self._lock(key)
        try:
            lock.acquire(timeout=-1 if wait else 0, poll_interval=LOCK_POLL_S)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_claimed(self, key: str) -> bool:
        """Whether somebody is making the video now. Writes nothing, so that what cannot be written can be read."""
        try:
            lock = self._lock_path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except PermissionError:  # somebody else's
            return True
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of as the file is closed
            except OSError:
                return True
        return False

    def _lock(self, key: str) -> FileLock:
        return FileLock(self._lock_path(key), is_singleton=False)

    def _lock_path(self, key: str) -> Path:
        return self.run_path(key) / ".lock"

    def run_keys(self) -> list[str]:
        """Of all runs, in order. A folder of another name is somebody else's."""
        return [path.name for path in self._folders() if _KEY.fullmatch(path.name)]

    def foreign(self) -> list[str]:
        """Names of the folders among the runs that are none."""
        return [path.name for path in self._folders() if not _KEY.fullmatch(path.name)]

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.run_path("").glob("*") if path.is_dir())

    def all(self) -> Iterator[Record]:
        """Every readable record of this schema, in order of key."""
        for key in self.run_keys():
            record = self.read(key)
            if record is not None:
                yield record


@cache
def _fields() -> TypeAdapter[Record]:
    """A record's fields by their types, as annotated."""
    from pydantic import TypeAdapter  # imported late: bench gpu reads no records and does without

    return TypeAdapter(Record)


def store_of(job: Job) -> RecordStore:
    """Where the job's videos are."""
    return RecordStore(job.output_dir, job.any_code)


def maker() -> str:
    """This host and process."""
    return f"{platform.node()}:{os.getpid()}"
