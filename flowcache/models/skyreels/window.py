"""The latents of one window on their way from noise to clean.

Shape letters: C latent channels, f x h x w latent frames, rows and columns of the window, p given frames, b a chunk's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcache.models.skyreels.config import CLEAN, WAITING, Sampling
from flowcache.models.wan.unipc import Solver, noise_levels
from flowcache.schedule import ChunkStep, Row, Schedule, Window


def all_times(sampling: Sampling) -> list[int]:
    """Every timestep of a generation: of the steps in order, of finished, of waiting and of given frames."""
    return [*noise_levels(sampling.num_steps, sampling.shift)[1], CLEAN, WAITING, sampling.addnoise_condition]


class WindowLatents:
    """Latents, given frames and solvers of a window.

    Args:
        window: of ``schedule``.
        noise: float32 [1, C, f, h, w].
        given: float32 [1, C, p, h, w], first frames that are not denoised, or None; they need not fill whole chunks.
        condition_noise: like ``given``; the network is shown a little of it in them (``sampling.addnoise_condition``).
    """

    def __init__(
        self,
        sampling: Sampling,
        schedule: Schedule,
        window: Window,
        noise: Tensor,
        given: Tensor | None = None,
        condition_noise: Tensor | None = None,
    ) -> None:
        self.window, self.given = window, given
        self.latents = noise.clone()
        self._block, self._corrects_as_published = sampling.causal_block_size, sampling.corrector == "published"
        self._levels, _ = noise_levels(sampling.num_steps, sampling.shift)
        self._solvers: dict[int, Solver] = {}
        self._num_given = 0 if given is None else given.shape[2]
        self._keep_given_frames()
        level = sampling.addnoise_condition / 1000
        self._shown = given if given is None or not level else given * (1 - level) + condition_noise * level
        self._time_indices = self._index_times(schedule).to(noise.device)

    def frames(self, chunk: int) -> slice:
        """The chunk's latent frames in the window."""
        first = (chunk - self.window.first_chunk) * self._block
        return slice(first, first + self._block)

    def shown(self, chunk: int) -> Tensor:
        """What the network is given of a chunk: [1, C, b, h, w], a copy where given frames are in it."""
        frames = self.frames(chunk)
        latent = self.latents[:, :, frames]
        inside = min(self._num_given - frames.start, self._block)
        if inside > 0:
            latent = latent.clone()
            latent[:, :, :inside] = self._shown[:, :, frames.start : frames.start + inside]
        return latent

    def times(self, row: Row, chunk: int) -> Tensor:
        """Places in ``all_times`` of the chunk's frames in a row, int64 [b]."""
        return self._time_indices[row.index - self.window.rows[0], self.frames(chunk)]

    def clean_times(self, chunk: int) -> Tensor:
        """The same once the chunk is finished."""
        return self._time_indices[-1, self.frames(chunk)]

    @staticmethod
    def noise(row: Row, chunk: int) -> float:
        """A chunk's share of noise in a row, from 0 (finished) to 1 (waiting)."""
        return row.step_of(chunk).t / 1000 if chunk in row.chunks else float(chunk > row.chunks[-1])

    def begin(self, row: Row) -> None:
        """Chunks that take their first step begin with a solver of their own."""
        for step in row.steps:
            if step.step == 0:
                self._solvers[step.chunk] = Solver(self._levels)

    def clean(self, chunk: int, velocity: Tensor) -> Tensor:
        """The estimate of the chunk's clean latent that a velocity makes, [1, C, b, h, w]."""
        return self._solvers[chunk].clean(velocity, self.latents[:, :, self.frames(chunk)])

    def state(self, chunk: int) -> tuple[tuple[Solver, Tensor], int]:
        """The chunk's solver and latent before its next step, and what keeping them takes in bytes, but for the newest
        estimate, which forecasts keep anyway."""
        solver, latent = self._solvers[chunk].copy(), self.latents[:, :, self.frames(chunk)].clone()
        return (solver, latent), solver.bytes

    def take_again(self, chunk: int, state: tuple[Solver, Tensor], estimates: Sequence[Tensor]) -> None:
        """Go back to a ``state`` and take the steps since with other estimates of the clean latent.

        The solver's own history is corrected with the latent: it looks back on the estimates of these steps too.
        """
        solver, latent = state
        for clean in estimates:
            latent = solver.step(clean, latent)
        self._solvers[chunk], self.latents[:, :, self.frames(chunk)] = solver, latent

    def advance(self, step: ChunkStep, clean: Tensor) -> None:
        """A chunk's step, with an estimate of its clean latent, float32 [1, C, b, h, w], that may be kept."""
        frames = self.frames(step.chunk)
        if clean.is_meta:  # shapes alone, which a solver keeps, and half of a dry run's time
            self.latents[:, :, frames] = clean
            return
        # A copy: the solver keeps what it is given, and the latents move on in place.
        latent = self.latents[:, :, frames].clone()
        solver = self._solvers[step.chunk]
        self.latents[:, :, frames] = solver.step(clean, latent)
        if self._corrects_as_published and step.step == 0:
            solver.last = self.latents[:, :, frames].clone()

    def end(self, row: Row) -> None:
        """Finished chunks need no solver; given frames stay as they were given."""
        for chunk in row.finished:
            del self._solvers[chunk]
        self._keep_given_frames()

    def _keep_given_frames(self) -> None:
        if self.given is not None:
            self.latents[:, :, : self._num_given] = self.given

    def _index_times(self, schedule: Schedule) -> Tensor:
        """Of every row and frame, int64 [rows + 1, f]; the last row is that of finished frames."""
        clean, waiting, given = range(schedule.num_steps, schedule.num_steps + 3)
        taken = [
            [schedule.steps_taken(schedule.rows[r], chunk) for chunk in self.window.chunks] for r in self.window.rows
        ]
        indices = torch.tensor([*taken, [clean] * self.window.num_chunks]).repeat_interleave(self._block, dim=1)
        indices[indices < 0] = waiting
        indices[:, : self._num_given] = given
        return indices
