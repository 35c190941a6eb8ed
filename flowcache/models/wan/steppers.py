"""A chunk's step from one noise level to the next, by an estimate of its clean latent: with fresh noise, or an ODE's.

Latents and estimates are float32 [1, C, b, h, w], one chunk's.

Shape letters: C latent channels, b x h x w a chunk's latent frames, rows and columns, f latent frames generated, K
steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowcache.models.wan.blocks import Blocks
from flowcache.models.wan.noise_levels import clean_of, level_of, noised
from flowcache.models.wan.unipc import Solver
from flowcache.schedule import ChunkStep, Row, Schedule


class FreshNoise:
    """The estimate is noised again, with other noise than before; after the last step it is the result.

    Args:
        shift: of the noise levels.
        schedule, blocks: of the generation.
        noise: float32 [K - 1, 1, C, f, h, w]; entry k brings a frame to step k + 1. Frames count after the prefix.
    """

    def __init__(self, shift: float, schedule: Schedule, blocks: Blocks, noise: Tensor) -> None:
        self._shift, self._schedule, self._blocks, self._noise = shift, schedule, blocks, noise
        self._given = blocks.start(schedule.prefix_chunks)

    def begin(self, row: Row) -> None:
        """Nothing is remembered from step to step."""

    def clean(self, step: ChunkStep, velocity: Tensor, latent: Tensor) -> Tensor:
        """The estimate of the clean latent that a velocity makes."""
        return clean_of(velocity, latent, level_of(step.t, self._shift))

    def advance(self, step: ChunkStep, clean: Tensor, latent: Tensor) -> Tensor:
        """The latent after the step."""
        if step.step == self._schedule.steps_of(step.chunk) - 1:
            return clean
        frames = self._blocks.frames(step.chunk)
        noise = self._noise[step.step, :, :, frames.start - self._given : frames.stop - self._given]
        return noised(clean, noise, level_of(step.t_next, self._shift))


class UniPc:
    """The flow is followed, by a solver for every chunk; what it took for clean can be exchanged afterwards.

    Args:
        levels: from ``flowcache.models.wan.unipc.noise_levels``.
    """

    def __init__(self, levels: Tensor) -> None:
        self._levels = levels
        self._solvers: dict[int, Solver] = {}

    def begin(self, row: Row) -> None:
        """A chunk that takes its first step begins with a solver of its own."""
        for step in row.steps:
            if step.step == 0:
                self._solvers = {step.chunk: Solver(self._levels)}

    def clean(self, step: ChunkStep, velocity: Tensor, latent: Tensor) -> Tensor:
        """As of FreshNoise."""
        return self._solvers[step.chunk].clean(velocity, latent)

    def advance(self, step: ChunkStep, clean: Tensor, latent: Tensor) -> Tensor:
        """As of FreshNoise; the estimate is kept."""
        if clean.is_meta:  # shapes alone, which a solver keeps
            return clean
        return self._solvers[step.chunk].step(clean, latent.clone())  # which it keeps, and latents move on in place

    def state(self, chunk: int, latent: Tensor) -> tuple[tuple[Solver, Tensor], int]:
        """The chunk's solver and latent before its next step, and what keeping them takes in bytes, but for the newest
        estimate, which forecasts keep anyway."""
        solver = self._solvers[chunk].copy()
        return (solver, latent.clone()), solver.bytes

    def take_again(self, chunk: int, state: tuple[Solver, Tensor], estimates: Sequence[Tensor]) -> Tensor:
        """Go back to a ``state`` and take the steps since with other estimates of the clean latent -> latent."""
        solver, latent = state
        for clean in estimates:
            latent = solver.step(clean, latent)
        self._solvers[chunk] = solver
        return latent
