"""Metrics of a job's videos: measured as they are made, or from the lossless files of finished ones."""

from __future__ import annotations

from numpy import ndarray
from torch import Tensor

from eval.video_io import read_lossless
from experiments.job.errors import VideoLost
from experiments.job.job import Job
from experiments.records import Record, RecordStore, new_record
from experiments.records.metrics import metric_code
from experiments.run import measure
from experiments.run.latents import LATENT_SNR, latent_snr, read_latents


def reference_record(job: Job, prompt: str) -> Record:
    """Of the baseline's video of a prompt, as it would be made now: what the method's is compared with."""
    return new_record(job, job.baseline_name, job.baseline_method, prompt)


class VideoMetrics:
    """Of one job's videos, kept in its store."""

    def __init__(self, job: Job, store: RecordStore) -> None:
        self.job, self.store = job, store

    def measure(
        self,
        record: Record,
        frames: ndarray,
        latents: Tensor | None,
        reference: Record | None,
        names: tuple[str, ...],
    ) -> None:
        """Add those metrics of the video, or why there are none, to its record.

        Args:
            frames: uint8 [F, H, W, 3].
            latents: float32 [C, f, h, w], of all chunks together; None where none were kept.
            reference: the baseline's record; None of a baseline.
            names: of the metrics; any other of the record's stays.
        """
        if self.job.random_weights is not None:
            metrics, notes = measure.refused(names)
        elif reference is not None:
            original = self._lossless(reference)
            metrics, notes = measure.quality(frames, original, names, self.job.device)
            if LATENT_SNR in names:
                its = read_latents(self.store, reference)
                value, reason = latent_snr(latents, its, self.job.baseline_name)
                metrics, notes = metrics | value, notes | reason
        else:
            metrics, notes = {}, {}
        if self.job.random_weights is None:
            model = self.job.load_model()
            chunks = (model.chunk_frames, model.frames_of(1))
            if "caption" in names:
                record.caption, reason = measure.caption(frames, record.prompt, *chunks)
                notes |= {"caption": reason} if reason else {}
            if measure.FLOW_JUMP in names:
                metrics[measure.FLOW_JUMP] = measure.motion_jump(frames, *chunks)
            measured = [name for name in names if name in metrics or name == "caption"]
            record.metrics_code = record.metrics_code | {name: metric_code(name) for name in measured}
        old_notes = {name: note for name, note in record.notes.items() if name not in names}
        record.metrics, record.notes = {**record.metrics, **metrics}, {**old_notes, **notes}

    def measure_later(self, record: Record, names: tuple[str, ...]) -> None:
        """Add metrics to a finished record, from the lossless files; the rest of it stays. Raises VideoLost."""
        reference = None if self.job.is_baseline else self._reference_of(record)
        if reference is None and set(names) & measure.COMPARED:
            raise VideoLost(
                f"{self.job.baseline_name}'s video of this prompt, which {', '.join(names)} would compare with, is "
                "gone; force=true makes both again"
            )
        latents = read_latents(self.store, record) if LATENT_SNR in names else None
        self.measure(record, self._lossless(record), latents, reference, names)
        self.store.amend(record)

    def _reference_of(self, record: Record) -> Record | None:
        """The finished reference of a finished record: its own, or else the one that counts now."""
        own = None if record.reference is None else self.store.finished(record.reference)
        return own or self.store.find(reference_record(self.job, record.prompt).key)

    def _lossless(self, record: Record) -> ndarray:
        """Frames of a finished video. Raises VideoLost."""
        try:
            return read_lossless(self.store.video_path(record.key))
        except (FileNotFoundError, ValueError) as error:
            raise VideoLost(f"{error}; force=true makes the video again") from error
