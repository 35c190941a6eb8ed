"""Forcing-KV (arXiv 2605.09681): heads that look at the newest frames keep those, the others what is about to change.

Heads are sorted once, by what share of their attention to all but the first frames goes to the last ones. Static heads
keep a sink and the newest frames. Dynamic heads keep, beside those, the patches of the frames before that are least
like the same place a frame later (zju-jiyicheng/Forcing-KV: configs_head/head_profile.py,
wan/modules/causal_model_forcingkv.py). There patch numbers go from layer to layer through a class, so that two models
in one process disturb each other, and chunks must be of 3 frames; here they belong to a cache, and chunks may be of any
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowcache.kv.select.by_head import HeadSelector, KeepSet
from flowcache.options import check_counts, is_finite


@dataclass(kw_only=True)
class ForcingKv(HeadSelector):
    """Attributes.

    threshold: heads whose share is at least this are static.
    newest_frames: the last key frames that the share is of.
    skipped_frames: the first ones, that it leaves out (published: 1, and 3 for the files that come with the code). A
        history so short that both meet makes every head static.
    sink_frames: latent frames at the beginning that both kinds keep.
    static_frames, dynamic_frames: the newest finished frames that each kind keeps.
    patch_frames: what dynamic heads keep beside them, in frames' worth of patches (published: a third of the patches of
        a chunk of 3 frames, which is 1; the 14B model 0).
    patches: a frame is cut into at most so many equal ones, of consecutive tokens.
    unsplit_chunks: as long as no more chunks than these are finished all heads keep the same, and no patches; the first
        layer always does.
    """

    threshold: float = 0.8
    newest_frames: int = 4
    skipped_frames: int = 1
    sink_frames: int = 1
    static_frames: int = 1
    dynamic_frames: int = 1
    patch_frames: int = 1
    patches: int = 6
    unsplit_chunks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_finite(self.threshold):
            raise ValueError(f"threshold={self.threshold!r} must be a finite number (published: 0.8)")
        check_counts(newest_frames=self.newest_frames, patches=self.patches)
        check_counts(
            0,
            skipped_frames=self.skipped_frames,
            sink_frames=self.sink_frames,
            static_frames=self.static_frames,
            dynamic_frames=self.dynamic_frames,
            patch_frames=self.patch_frames,
            unsplit_chunks=self.unsplit_chunks,
        )
        if self.patch_frames and not self.dynamic_frames:
            raise ValueError(
                f"patch_frames={self.patch_frames} compares frames that leave with the next one, and dynamic_frames=0 "
                "keeps none; choose dynamic_frames=1, or patch_frames=0"
            )
        self._static: list[frozenset[int]] = []
        if self.heads is not None:
            for layer in self.heads.mass:
                scores = enumerate(map(self.score, layer))
                self._static.append(frozenset(head for head, score in scores if score >= self.threshold))

    def score(self, mass: Sequence[float]) -> float:
        """A head's, of its attention by key frame; above 1 where the last frames are among those left out."""
        counted = sum(mass[self.skipped_frames :])
        return sum(mass[-self.newest_frames :]) / counted if counted else float("inf")

    def keep_sets(self, layer: int, finished_chunks: int) -> Sequence[KeepSet]:
        heads, longest = range(len(self.heads.mass[layer])), max(self.static_frames, self.dynamic_frames)
        if layer == 0:
            return (KeepSet(tuple(heads), self.sink_frames, longest),)
        static = tuple(head for head in heads if head in self._static[layer])
        dynamic = tuple(head for head in heads if head not in self._static[layer])
        split = finished_chunks >= self.unsplit_chunks
        patch_frames = self.patch_frames if finished_chunks > self.unsplit_chunks else 0
        return (
            KeepSet(static, self.sink_frames, self.static_frames if split else longest),
            KeepSet(dynamic, self.sink_frames, self.dynamic_frames if split else longest, patch_frames, self.patches),
        )
