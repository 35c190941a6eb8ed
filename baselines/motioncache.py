"""MotionCache (arXiv 2605.01725): a chunk's tokens spend an error budget each, faster where the video moves.

The paper has one rule; its released code (ywlq/MotionCache) has one for SkyReels-V2
(MotionCache4SkyReels-V2/skyreels_v2_infer/modules/transformer_motion.py) and one for MAGI-1
(MotionCache4MAGI-1/inference/pipeline/flowcache.py), which differ in most details. They are options here, and any model
that computes chunks in part takes any of them. What the paper does not have: ``vote``, ``min_share``, ``most_reused``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowcache.options import (
    check_choice,
    check_counts,
    check_share,
    check_switches,
    check_threshold,
    check_warmup,
    check_warmup_fits,
    is_finite,
)
from flowcache.reuse.base import Decision, Report, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, Polynomial, checked_polynomial, rescaling
from flowcache.schedule import ChunkStep, Row, Schedule

Wanted = bool | Tensor  # whether a chunk computes, or which of its tokens in each branch, bool [G, T]


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
            SkyReels-V2); "stale" does in the video's last row what was done before it (as published on MAGI-1).
        published: the released code's faults. With motion "latent", MAGI-1's: chunks computed in part attend to what
            the oldest one does, and not to themselves, and tokens that a vote adds do not begin again at 0. With
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
        check_counts(0, chunk_phase=self.chunk_phase)
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
        self._wanted: dict[int, Wanted] = {}  # in the last row

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

    def wants_motion(self, row: Row) -> bool:
        return self.weighs_once or any(self._is_second_phase(s.chunk, s.step + 1) for s in row.steps)

    def observe(self, row: Row, reports: Mapping[int, Report]) -> None:
        for chunk, report in reports.items():
            if not (self.weighs_once and chunk in self._motion):
                self._motion[chunk] = report.motion
        for chunk in row.finished:
            for kept in (self._updates, self._sums, self._motion, self._wanted):
                kept.pop(chunk, None)

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        is_stale = self.last_step == "stale" and row.index == len(schedule.rows) - 1 and self._wanted
        if not is_stale:
            by_token = [s for s in row.steps if not self._decides_whole(s, distances.get(s.chunk), schedule)]
            if by_token:
                self._decide_tokens(by_token, distances, row, schedule)
        in_part = {c: self._wanted[c] for c in row.chunks if isinstance(self._wanted[c], Tensor)}
        computing = {c: [True] if len(own) == 1 else own.any(1).tolist() for c, own in in_part.items()}
        branches = tuple(
            tuple(c for c in row.chunks if (computing[c][branch] if c in in_part else self._wanted[c]))
            for branch in range(max((len(own) for own in in_part.values()), default=1))
        )
        alike = all(computed == branches[0] for computed in branches)
        oldest_keys = tuple(in_part) if "oldest_keys" in self.uses else ()
        return Decision(branches[0], in_part, oldest_keys=oldest_keys, branches=() if alike else branches)

    def _decides_whole(self, step: ChunkStep, distance: ChunkDistance | None, schedule: Schedule) -> bool:
        """Decide whether a chunk computes, unless each of its tokens decides."""
        chunk = step.chunk
        is_last = self.last_step == "own" and step.step == schedule.steps_of(chunk) - 1
        if distance is None or step.step < max(1, self.warmup_steps) or is_last or self.threshold == 0:
            self.accumulated[chunk], self._wanted[chunk] = 0.0, True
            return True
        if self._is_second_phase(chunk, step.step):
            return False
        total = self.accumulated.get(chunk, 0.0) + self._rescaled(distance.relative)
        computes = not total < self.threshold  # a NaN distance computes
        self.accumulated[chunk], self._wanted[chunk] = 0.0 if computes else total, computes
        self._updates[chunk] = self._updates.get(chunk, 0) + computes
        return True

    def _is_second_phase(self, chunk: int, step: int) -> bool:
        if self.chunk_phase_counts == "steps":
            return step >= self.warmup_steps + self.chunk_phase
        return self._updates.get(chunk, 0) >= self.chunk_phase

    def _decide_tokens(
        self, steps: Sequence[ChunkStep], distances: Mapping[int, ChunkDistance], row: Row, schedule: Schedule
    ) -> None:
        """Decide of every token of N chunks, [N, G, T], whether it computes."""
        chunks = [step.chunk for step in steps]
        motion = torch.stack([self._motion[chunk] for chunk in chunks])
        weights = self._weights(motion, chunks[0] == schedule.windows[row.window].first_chunk).flatten(2)
        if self.token_distances:
            moved = self._rescaled(torch.stack([distances[chunk].tokens for chunk in chunks])[:, None])
        else:
            moved = torch.tensor([self._rescaled(distances[chunk].relative) for chunk in chunks])[:, None, None]
        none = torch.zeros_like(weights[0])
        sums = weights.mul_(moved).add_(torch.stack([self._sums.get(chunk, none) for chunk in chunks]))
        chosen = self._chosen(sums, steps, len(schedule.rows))
        wanted = self._voted(chosen.view_as(motion)).flatten(2)
        begins_again = chosen if self.published and self.vote_adds else wanted
        if self.min_share:
            share = wanted.float().mean(2, keepdim=True)
            computes = (share == 0) | (share >= self.min_share)
            wanted, begins_again = wanted & computes, begins_again & computes
        sums.masked_fill_(begins_again, 0.0)
        counts, most = wanted.sum((1, 2)).tolist(), sums.amax((1, 2)).tolist()
        for chunk, own, tokens, count, largest in zip(chunks, sums, wanted, counts, most, strict=True):
            self._sums[chunk], self.accumulated[chunk] = own, largest
            whole = count == tokens.numel()
            self._wanted[chunk] = tokens if count and not whole else whole

    def _weights(self, motion: Tensor, has_first: bool) -> Tensor:
        """Of motion [N, G, f, P], whose place they take. ``has_first``: of chunks that a video (window) begins with."""
        unknown = math.isnan(motion[0, 0, 0, 0].item())  # all others follow a chunk that was measured with them
        if unknown:
            motion[0, :, 0] = motion[0, :, 1] if has_first and motion.shape[2] > 1 else 1.0
        if self.scale == "min_max":
            least, most = torch.aminmax(motion, dim=-1, keepdim=True)
            scaled = motion.sub_(least).div_(most.sub_(least).add_(1e-8))  # at the floor where all moves alike
            weights = (scaled if self.power == 1 else scaled.pow_(self.power)).mul_(1 - self.floor).add_(self.floor)
        else:
            whole = motion.mean(-1, keepdim=True) if self.scale == "mean" else motion.amax(-1, keepdim=True)
            weights = motion / (whole + 1e-8)
        if unknown and self.first_frame == "one":
            weights[0, :, 0] = 1.0
        return weights

    def _chosen(self, sums: Tensor, steps: Sequence[ChunkStep], num_rows: int) -> Tensor:
        """Tokens whose sums are at the threshold, or that may not be reused for their number."""
        threshold = self.threshold if self.token_threshold is None else self.token_threshold
        chosen = (sums < threshold).logical_not_() if threshold else torch.ones_like(sums, dtype=torch.bool)
        if self.most_reused is not None:
            start, (first, last) = self.warmup_steps + self.chunk_phase, self.most_reused
            for step, of_chunk, own_sums in zip(steps, chosen, sums, strict=True):
                way = min(1.0, max(0.0, (step.step - start) / max(1, num_rows - start)))
                most = int(sums.shape[2] * (first + (last - first) * way))
                for own, values in zip(of_chunk, own_sums, strict=True):
                    if int((~own).sum()) > most:
                        own |= values > values.kthvalue(most).values if most else True
        return chosen

    def _voted(self, wanted: Tensor) -> Tensor:
        """bool [N, G, f, P] after the frames' vote."""
        if self.vote is None:
            return wanted
        everywhere = (wanted.sum(2, keepdim=True) > self.vote * wanted.shape[2]).expand_as(wanted)
        return wanted | everywhere if self.vote_adds else everywhere
