"""Generate, time and measure the videos of a job, one record each; finished videos are never made again.

A metric that is asked for later is measured from the finished videos' lossless files. A time that is asked for later,
or in another way, is taken again and kept beside the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from eval.atomic import atomic_path
from eval.latency import Take
from eval.video_io import write_lossless, write_mp4
from experiments.job.errors import BadInput, Failure, RanksFailed, RunFailed
from experiments.job.job import Job
from experiments.records import Record, maker, new_record, store_of
from experiments.records.record import Timing
from experiments.records.timings import ways
from experiments.run import environment, measure
from experiments.run.calibrated import check_calibrations
from experiments.run.latents import has_latents, keeps_latents, write_latents
from experiments.run.ranks import timed
from experiments.run.video_metrics import VideoMetrics, reference_record
from flowcache.kernels import compile_seconds
from flowcache.method import Method
from flowcache.reuse.never import Never
from flowcache.reuse.replay import Replay

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a job will do.

    Attributes:
        to_make, references_to_make: prompts whose method video, and whose reference, the baseline's, are to be made.
        to_measure: prompts whose videos are there but lack a metric.
        to_time: prompts whose videos are there but were not timed as the job asks.
        lacking: the metrics that any of those lack, in the order of the job's.
        finished: prompts that nothing is left to do for.
    """

    to_make: tuple[str, ...]
    references_to_make: tuple[str, ...]
    to_measure: tuple[str, ...]
    to_time: tuple[str, ...]
    lacking: tuple[str, ...]
    finished: int

    @property
    def unfinished(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.to_measure + self.to_time + self.to_make))


class _Busy(Exception):
    """Another process is making a video that this one needs."""


@dataclass(frozen=True)
class Outcome:
    """Of going through some prompts: what failed, and the prompts whose videos others were making."""

    failures: tuple[Failure, ...]
    busy: tuple[str, ...]


class Runner:
    """Runs a job in this process.

    Attributes:
        prompts: the job's, each once: the same prompt again would be the same video.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.prompts = tuple(dict.fromkeys(job.prompts))
        self.store = store_of(job)
        self._metrics = VideoMetrics(job, self.store)
        self._warm: set[str] = set()
        environment.prepare(job.threads)

    @cached_property
    def way(self) -> str:
        """How times are taken here; see ``experiments.records.timings``."""
        return environment.way(self.job)

    @property
    def model(self) -> Any:
        return self.job.load_model()

    def queue(self, prompts: Sequence[str]) -> None:
        """Note in the store what is still to be made, for others to see."""
        for prompt in self.plan(prompts).to_make:
            self.store.queue(self._record(prompt))

    def withdraw(self, prompts: Sequence[str]) -> None:
        """Take back what ``queue`` noted and nobody has begun: it cannot be made."""
        for prompt in prompts:
            self.store.withdraw(self._record(prompt).key)

    def plan(self, prompts: Sequence[str] | None = None) -> Plan:
        """``prompts`` are those of the job, if not given; each counts once."""
        prompts = self.prompts if prompts is None else tuple(dict.fromkeys(prompts))
        found = {p: None if self.job.force else self.store.find(self._record(p).key) for p in prompts}
        to_make = tuple(p for p in prompts if found[p] is None)
        references = tuple(p for p in to_make if not self.job.is_baseline and self._lacks_reference(p))
        lacking = {p: self.lacking(record) for p, record in found.items() if record is not None}
        to_measure = tuple(p for p in prompts if lacking.get(p))
        to_time = tuple(p for p in prompts if found[p] is not None and self.lacks_time(found[p]))
        names = tuple(name for name in self.job.metrics if any(name in own for own in lacking.values()))
        finished = len(prompts) - len({*to_make, *to_measure, *to_time})
        return Plan(to_make, references, to_measure, to_time, names, finished)

    def lacking(self, record: Record) -> tuple[str, ...]:
        """Metrics of the job that a finished record of it lacks; of random weights none can be had."""
        if self.job.random_weights is not None:
            return ()
        return measure.lacking(record, self.job.metrics, self.job.is_baseline)

    def lacks_time(self, record: Record) -> bool:
        """Whether times are asked for of a finished record's video that were not taken in this way.

        Other code's are gone for good: they are not today's.
        """
        if record.prompt not in self._timed_prompts or record.key != self._record(record.prompt).key:
            return False
        timing = ways(record).get(self.way)
        return timing is None or (timing.baseline_latency_s is None and not self.job.is_baseline)

    def run(self, prompts: Sequence[str] | None = None, progress: Progress = lambda text: None) -> list[Record]:
        """Make what is missing and return the records of the prompts (the job's, if not given), in order.

        ``progress`` is told after each video. Raises BadInput before any is made, and RunFailed once all that can be
        made are.
        """
        prompts = self.prompts if prompts is None else prompts
        outcome = self.drain(prompts, progress)
        failures = outcome.failures + self.drain(outcome.busy, progress, wait=True).failures
        if failures:
            raise RunFailed(failures)
        return self.records(prompts)

    def drain(self, prompts: Sequence[str], progress: Progress = lambda text: None, wait: bool = False) -> Outcome:
        """Make what is missing and nobody else is making, or with ``wait`` no longer is.

        A video's failure is recorded and the next one made; OSError is raised, for what ails the disk ails all.
        """
        failures, busy = [], []
        plan = self.plan(prompts)
        if plan.to_make and not self._warm:
            self.check(plan.to_make[0])
        for prompt in plan.unfinished:
            try:
                if not self._finish_unclaimed(prompt, progress, wait):
                    busy.append(prompt)
            except (OSError, BadInput, RanksFailed):
                raise
            except Exception as error:
                failures.append(Failure(self.job.label, prompt, error))
                progress(f"{self.job.label}: {prompt}: failed, {type(error).__name__}: {error}")
        return Outcome(tuple(failures), tuple(busy))

    def _finish_unclaimed(self, prompt: str, progress: Progress, wait: bool) -> bool:
        """Whether the video is there now, with every metric and time; not, if another is at it."""
        record = self._record(prompt)
        found = None if self.job.force else self.store.find(record.key)
        key = record.key if found is None else found.key  # of other code's, if that counts
        with self.store.claim(key, wait) as mine:
            if not mine:
                return False
            found = None if self.job.force else self.store.finished(key)  # as nobody else changes it now
            if found is not None:
                if lacking := self.lacking(found):
                    self._metrics.measure_later(found, lacking)
                    progress(f"{self.job.label}, measured: {prompt}")
                if self.lacks_time(found):
                    self._time_finished(found, progress)
                return True
            try:
                with self._failure_noted(record):
                    baseline = None if self.job.is_baseline else self._time_baseline(prompt, progress, wait)
            except _Busy:
                return False
            self.make(record, self.job.method, prompt, baseline)
            progress(f"{self.job.label}: {prompt}")
            return True

    def _time_baseline(self, prompt: str, progress: Progress, wait: bool) -> float | None:
        """Seconds that the baseline takes, just now, on timed prompts and where its video, then made, is missing, not
        what was written, or without latents that are asked for.

        Raises _Busy if another is making that, unless ``wait`` is asked for.
        """
        reference = reference_record(self.job, prompt)
        with self.store.claim(reference.key, wait) as mine:
            if not mine:
                raise _Busy
            if self._lacks_reference(prompt) or self.store.damage(self.store.find(reference.key)):
                made = self.make(reference, self.job.baseline_method, prompt)
                progress(f"{self.job.baseline_name}: {prompt}")
                return made.latency_s
        return self._retime_baseline(prompt, progress) if prompt in self._timed_prompts else None

    def _lacks_reference(self, prompt: str) -> bool:
        found = self.store.find(reference_record(self.job, prompt).key)
        return found is None or (keeps_latents(self.job) and not has_latents(self.store, found))

    def _retime_baseline(self, prompt: str, progress: Progress) -> float:
        taken = self.take(self.job.baseline_method, prompt)
        progress(f"{self.job.baseline_name}, for timing: {prompt}")
        return taken.latency_s

    def _time_finished(self, record: Record, progress: Progress) -> None:
        """Add times to a finished record, taken as this job asks; its video and all else stay."""
        prompt = record.prompt
        baseline_latency_s = None if self.job.is_baseline else self._retime_baseline(prompt, progress)
        taken, here = self.take(self.job.method, prompt), self._environment()
        record.timings[self.way] = Timing(
            taken.latency_s, baseline_latency_s, taken.sections_s, taken.chunk_latency_s, taken.peak_memory_gib, here
        )
        self.store.amend(record)
        progress(f"{self.job.method_name}, timed: {prompt}")

    def _environment(self) -> dict[str, Any]:
        return {**environment.describe(self.job.device), "workers": self.job.workers}

    def check(self, prompt: str) -> Any:
        """The generation of a prompt, begun. Raises BadInput for weights missing or wrong, also of a calibration, and
        for what the model refuses: sizes, frames, steps."""
        model, job = self.model, self.job
        check_calibrations(job)
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # they come again, and are kept then
                return model.generation(prompt, job.num_frames, job.method, job.seed, **job.generation_options)
        except ValueError as error:
            raise BadInput(str(error)) from error

    def records(self, prompts: Sequence[str]) -> list[Record | None]:
        """Finished records of some prompts; None for those that are not."""
        return [self.store.find(self._record(prompt).key) for prompt in prompts]

    def num_steps(self, plan: Plan) -> int:
        """Videos that ``run`` will generate, measure later or time again, for a progress bar."""
        own = len(plan.to_make) + len(plan.to_measure) + len(plan.to_time)
        if self.job.is_baseline:
            return own
        timed = {p for p in plan.to_make if p in self._timed_prompts} | set(plan.to_time)
        return own + len(timed | set(plan.references_to_make))

    @property
    def _timed_prompts(self) -> tuple[str, ...]:
        """Those on which the baseline is timed beside the method, even where its video is there."""
        return self.prompts[: self.job.latency_pairs]

    def make(self, record: Record, method: Method, prompt: str, baseline_latency_s: float | None = None) -> Record:
        """Generate one video, measure it, and save video, trace and record, the record last.

        A finished record and its files, of a video made again, stay until all of the new ones are written; otherwise
        the record says that it is running, and if it fails, why.
        """
        from pandas import DataFrame  # imported late: a run with nothing to do does without

        with self._failure_noted(record):
            record.environment = self._environment()
            record.timings = self._other_timings(record.key)
            record.status, record.maker = "running", maker()
            self._note(record)
            take = self.take(method, prompt)
            if self.job.compile:
                record.environment["compile_s"] = round(compile_seconds(), 1)  # of the warm-up: no take's
            record.latency_s, record.sections_s = take.latency_s, take.sections_s
            record.chunk_latency_s, record.peak_memory_gib = take.chunk_latency_s, take.peak_memory_gib
            record.baseline_latency_s = baseline_latency_s
            measure.describe_work(record, take.trace)
            compares = method != self.job.baseline_method
            reference = self.store.find(reference_record(self.job, prompt).key) if compares else None
            record.reference = None if reference is None else reference.key
            record.baseline_flops = take.trace.flops if reference is None else reference.flops
            self._metrics.measure(record, take.frames, take.latents, reference, self.job.metrics)
            random_weights = self.job.random_weights is not None
            with self.store.finishing(record) as aside:
                write_lossless(aside.video_path(record.key), take.frames, self.job.fps, random_weights)
                write_mp4(aside.preview_path(record.key), take.frames, self.job.fps, random_weights=random_weights)
                if take.latents is not None:
                    write_latents(aside.latents_path(record.key), take.latents)
                with atomic_path(aside.trace_path(record.key)) as temporary:
                    DataFrame(take.trace.records()).to_parquet(temporary)
        return record

    def _other_timings(self, key: str) -> dict[str, Timing]:
        """Of a video that is made again: those taken in other ways than now, which hold for the same video."""
        old = self.store.finished(key)
        return {} if old is None else {way: timing for way, timing in ways(old).items() if way != self.way}

    @contextmanager
    def _failure_noted(self, record: Record) -> Iterator[None]:
        """Whatever keeps a video from being made is said in its record, where that can be written."""
        try:
            yield
        except _Busy:
            raise
        except Exception as error:
            record.status, record.error = "failed", f"{type(error).__name__}: {error}"
            with suppress(OSError):
                self._note(record)
            raise

    def _note(self, record: Record) -> None:
        """Save an unfinished record, unless that would replace a finished one."""
        if self.store.finished(record.key) is None:
            self.store.save(record)

    def take(self, method: Method, prompt: str) -> Take:
        """Generate once, timed; the first take of each method is preceded by a short one that is thrown away."""
        if repr(method) not in self._warm:
            self._warm.add(repr(method))
            self._take(_without_decisions(method), prompt, self.model.frames_of(1))
        return self._take(method, prompt, self.job.num_frames)

    def _take(self, method: Method, prompt: str, num_frames: int) -> Take:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            taken = timed(self.job, method, prompt, num_frames, keeps_latents(self.job))
        texts = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
        taken.trace.remarks = list(dict.fromkeys([*taken.trace.remarks, *texts]))  # told once, with the figures
        return taken

    def _record(self, prompt: str) -> Record:
        return new_record(self.job, self.job.method_name, self.job.method, prompt)


def _without_decisions(method: Method) -> Method:
    """For a video of another length: a recording is of one length, and nothing else of it is left but its options."""
    return replace(method, reuse=Never()) if isinstance(method.reuse, Replay) else method
