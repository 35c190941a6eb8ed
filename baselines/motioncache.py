"""MotionCache (arXiv 2605.01725): a chunk's tokens spend an error budget each, faster where the video moves.

The paper has one rule; its released code (ywlq/MotionCache) has one for SkyReels-V2
(MotionCache4SkyReels-V2/skyreels_v2_infer/modules/transformer_motion.py) and one for MAGI-1
(MotionCache4MAGI-1/inference/pipeline/flowcache.py), which differ in most details. They are options here, and any model
that computes chunks in part takes any of them. What the paper does not have: ``vote``, ``min_share``, ``most_reused``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowcache.options import (
    check_choice,
    check_share,
    check_switches,
    check_threshold,
    check_warmup,
    check_warmup_fits,
    is_count,
    is_finite,
)
from flowcache.reuse.base import Decision, Report, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, Polynomial, checked_polynomial, rescaling
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class MotionCache(ReusePolicy):
    """Two phases after a warm-up. In the first a chunk adds up its distance d and computes, as a whole, once the sum
    reaches the threshold, as FlowCache does. In the second each token adds d times its weight, which is the greater the
    more it moves, computes once its own sum reaches the threshold, and begins again at 0.

    Attributes:
        threshold: of a chunk's sum; higher reuses more, 0 never reuses.
        token_threshold: of a token's sum; None is ``threshold``.
        warmup_steps: first steps of a chunk that compute.
        chunk_phase: length of the first phase: so many "steps" (MAGI-1) or computed ones ("updates", SkyReels-V2), as
            ``chunk_phase_counts`` says.
        distance, polynomial: see ``flowcache.reuse.chunkwise.Chunkwise``.
        token_distances: each token's own distance, in place of the chunk's; of "embedded_latent" alone.
        motion: what differs from frame to frame, "latent" (with its noise) or "block_output", relative to its size and
            with a decision of its own in each guidance branch; see ``flowcache.reuse.motion``.
        scale: of the motion in each frame: "min_max" from floor to 1, or over its "mean" or "max".
        floor: least weight of "min_max", 0 to 1.
        power: of the motion between floor and 1.
        first_frame: the weights of a video's first frame, of which no motion is known: those of the next one ("next",
            the paper's), or 1 ("one").
        weighs_once: keep the weights of a chunk's first step.
        vote: all frames compute what more than this share of them want computed in the same place; None has no vote.
        vote_adds: what else is wanted computes too; else the vote alone decides.
        min_share: a smaller share of a chunk's tokens does not compute, and goes on adding up.
        most_reused: greatest share of a chunk's tokens that may be reused, or two, from the beginning of the second
            phase on and when as many steps are taken as the video has rows; None is no limit.
        last_step: a chunk's last step computes ("own", sound), or is like any other ("free", as published on
            SkyReels-V2); "stale" does in the video's last row what was done in the row before (as published on MAGI-1).
        published: the released code's faults. With motion "latent", MAGI-1's: chunks computed in part attend to what the
            oldest one does, and not to themselves, and tokens that a vote adds do not begin again at 0. With
            "block_output", SkyReels-V2's: the first chunk of a window is compared with a chunk of the window before.
    """

    threshold: float
    token_threshold: float | None = None
    warmup_steps: int
    chunk_phase: int
    chunk_phase_counts: Literal["steps", "updates"] = "steps"
    distance: str = "embedded_latent"
    polynomial: Polynomial | None = None
    token_distances: bool = False
    motion: Literal["latent", "block_output"] = "latent"
    scale: Literal["min_max", "mean", "max"] = "min_max"
    floor: float = 0.6
    power: float = 1.0
    first_frame: Literal["next", "one"] = "next"
    weighs_once: bool = False
    vote: float | None = None
    vote_adds: bool = False
    min_share: float = 0.0
    most_reused: float | tuple[float, float] | None = None
    last_step: Literal["own", "free", "stale"] = "own"
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        if self.token_threshold is not None:
            check_threshold(self.token_threshold, "token_threshold")
        check_warmup(self.warmup_steps)
        if not is_count(self.chunk_phase, least=0):
            raise ValueError(f"chunk_phase={self.chunk_phase!r} must be a whole number of at least 0")
        check_choice("chunk_phase_counts", self.chunk_phase_counts, ("steps", "updates"))
        self.polynomial = checked_polynomial(self.distance, self.polynomial)
        check_switches(
            token_distances=self.token_distances,
            weighs_once=self.weighs_once,
            vote_adds=self.vote_adds,
            published=self.published,
        )
        if self.token_distances and self.distance != "embedded_latent":
            raise ValueError(
                f"token_distances=True does not go with distance={self.distance!r}, which tokens have not each; choose "
                "distance='embedded_latent'"
            )
        check_choice("motion", self.motion, ("latent", "block_output"))
        check_choice("scale", self.scale, ("min_max", "mean", "max"))
        check_choice("first_frame", self.first_frame, ("next", "one"))
        check_choice("last_step", self.last_step, ("own", "free", "stale"))
        if not (is_finite(self.power) and self.power > 0):
            raise ValueError(f"power={self.power!r} must be a finite number above 0")
        self.most_reused = self._checked_most_reused()
        check_share(floor=self.floor, min_share=self.min_share, vote=0 if self.vote is None else self.vote)
        self._rescaled = rescaling(self.polynomial)
        self._updates: dict[int, int] = {}  # of every chunk, since its warm-up
        self._sums: dict[int, Tensor] = {}  # of every chunk's tokens, [G, T]
        self._motion: dict[int, Tensor] = {}  # [G, f, P]
        self._before: dict[int, Tensor | bool] = {}  # what each chunk did in the row before

    def _checked_most_reused(self) -> Any:
        given = self.most_reused
        if given is None:
            return None
        shares = (given, given) if isinstance(given, (int, float)) else tuple(given)
        if len(shares) != 2:
            raise ValueError(f"most_reused={given!r} must be one share of tokens or two, or null for no limit")
        check_share(**{f"most_reused[{i}]": share for i, share in enumerate(shares)})
        return shares

    @property
    def uses(self) -> tuple[str, ...]:
        if self.motion == "block_output":
            return ("tokens", "branches")
        return ("tokens", "oldest_keys") if self.published else ("tokens",)

    @property
    def motion_across_windows(self) -> bool:
        return self.published

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def observe(self, row: Row, reports: Mapping[int, Report]) -> None:
        for chunk, report in reports.items():
            if not (self.weighs_once and chunk in self._motion):
                self._motion[chunk] = report.motion
        for chunk in row.finished:
            for kept in (self._updates, self._sums, self._motion, self._before):
                kept.pop(chunk, None)

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        if not (self.last_step == "stale" and row.index == len(schedule.rows) - 1 and self._before):
            self._before = {s.chunk: self._wanted(s, row, distances.get(s.chunk), schedule) for s in row.steps}
        wanted = self._before
        parts = {chunk: own for chunk, own in wanted.items() if isinstance(own, Tensor)}
        num_branches = max((len(own) for own in parts.values()), default=1)
        branches = tuple(
            tuple(c for c in row.chunks if (bool(parts[c][branch].any()) if c in parts else wanted[c]))
            for branch in range(num_branches)
        )
        in_part = {chunk: own for chunk, own in parts.items() if own.any() and not own.all()}
        alike = all(computed == branches[0] for computed in branches)
        return Decision(
            branches[0],
            tokens=in_part,
            oldest_keys=tuple(in_part) if "oldest_keys" in self.uses else (),
            branches=() if alike else branches,
        )

    def _wanted(self, step: ChunkStep, row: Row, distance: ChunkDistance | None, schedule: Schedule) -> Tensor | bool:
        """Whether a chunk computes, or which of its tokens do, bool [G, T]."""
        chunk = step.chunk
        is_last = self.last_step == "own" and step.step == schedule.steps_of(chunk) - 1
        if distance is None or step.step < max(1, self.warmup_steps) or is_last or self.threshold == 0:
            self.accumulated[chunk] = 0.0
            return True
        own = distance.relative if distance.tokens is None else distance.tokens
        if self._in_chunk_phase(step):
            total = self.accumulated.get(chunk, 0.0) + self._rescaled(distance.relative)
            computes = not total < self.threshold  # a NaN distance computes
            self.accumulated[chunk] = 0.0 if computes else total
            self._updates[chunk] = self._updates.get(chunk, 0) + computes
            return computes
        weights = self._weights(self._motion[chunk], chunk == schedule.windows[row.window].first_chunk)
        shape, flat = weights.shape, weights.flatten(1)
        sums = self._sums.get(chunk, torch.zeros_like(flat)) + self._rescaled(own) * flat
        wanted = self._chosen(sums, step, len(schedule.rows))
        voted = self._voted(wanted.view(shape)).flatten(1)
        begins_again = wanted if self.published and self.vote_adds else voted
        if self.min_share:
            share = voted.float().mean(1, keepdim=True)
            computes = (share == 0) | (share >= self.min_share)
            voted, begins_again = voted & computes, begins_again & computes
        self._sums[chunk] = sums.masked_fill(begins_again, 0.0)
        self.accumulated[chunk] = float(self._sums[chunk].max())
        return voted

    def _in_chunk_phase(self, step: ChunkStep) -> bool:
        if self.chunk_phase_counts == "steps":
            return step.step < self.warmup_steps + self.chunk_phase
        return self._updates.get(step.chunk, 0) < self.chunk_phase

    def _weights(self, motion: Tensor, opens_window: bool) -> Tensor:
        """Of motion [G, f, P], in the same shape."""
        unknown = motion[:, :1].isnan().any()
        if unknown:
            first = motion[:, 1:2] if opens_window and motion.shape[1] > 1 else torch.ones_like(motion[:, :1])
            motion = torch.cat([first, motion[:, 1:]], dim=1)
        if self.scale == "min_max":
            least, most = motion.amin(-1, keepdim=True), motion.amax(-1, keepdim=True)
            # A frame that moves alike everywhere is at the floor.
            weights = self.floor + (1 - self.floor) * ((motion - least) / (most - least + 1e-8)) ** self.power
        else:
            whole = motion.mean(-1, keepdim=True) if self.scale == "mean" else motion.amax(-1, keepdim=True)
            weights = motion / (whole + 1e-8)
        if unknown and self.first_frame == "one":
            weights[:, 0] = 1.0
        return weights

    def _chosen(self, sums: Tensor, step: ChunkStep, num_rows: int) -> Tensor:
        """Tokens whose sums [G, T] are at the threshold, or that may not be reused for their number."""
        threshold = self.threshold if self.token_threshold is None else self.token_threshold
        chosen = ~(sums < threshold)
        if threshold == 0:
            return torch.ones_like(chosen)
        if self.most_reused is not None:
            start, (first, last) = self.warmup_steps + self.chunk_phase, self.most_reused
            way = min(1.0, max(0.0, (step.step - start) / max(1, num_rows - start)))
            most = int(sums.shape[1] * (first + (last - first) * way))
            for own, of_branch in zip(chosen, sums, strict=True):
                if int((~own).sum()) > most:
                    own |= of_branch > of_branch.kthvalue(most).values if most else True
        return chosen

    def _voted(self, wanted: Tensor) -> Tensor:
        """bool [G, f, P] after the frames' vote."""
        if self.vote is None:
            return wanted
        everywhere = (wanted.sum(1, keepdim=True) > self.vote * wanted.shape[1]).expand_as(wanted)
        return wanted | everywhere if self.vote_adds else everywhere
