"""Dummy Forcing (arXiv 2601.20499): heads that hardly look back at all keep a single frame.

Every head is measured by its attention to the first frame and to those in between, each as a part of what all heads
give there. The heads whose larger part is smallest are dummies, and keep the newest frame alone; of the others, those
that look more at the first frame keep that, and the rest keep the newest frames (csguoh/DummyForcing:
wan/modules/dummyforcing.py). First and dummy heads share a call, since both keep one frame. There heads are sorted anew
in every video, by the queries of its second or third chunk, until which all heads keep everything; here they were
sorted before, and keep their own from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowcache.kv.select.by_head import HeadSelector, KeepSet
from flowcache.options import check_counts, check_share


@dataclass(kw_only=True)
class DummyForcing(HeadSelector):
    """Attributes.

    dummy_share: of all heads that become dummies (published: 180 of 360, though a quarter is named as found).
    recent_frames: the newest finished frames that heads keep that look in between.
    first_frames: that heads keep that look at the beginning.
    dummy_frames: the newest ones that dummies keep.
    """

    dummy_share: float = 0.5
    recent_frames: int = 3
    first_frames: int = 1
    dummy_frames: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(dummy_share=self.dummy_share)
        check_counts(first_frames=self.first_frames)
        check_counts(0, recent_frames=self.recent_frames, dummy_frames=self.dummy_frames)
        self._kinds: list[dict[str, tuple[int, ...]]] = [] if self.heads is None else self._sorted()

    def _sorted(self) -> list[dict[str, tuple[int, ...]]]:
        """By layer, the heads of each kind."""
        own = self.heads.chunk_frames
        first = min(self.first_frames, len(self.heads.mass[0][0]) - own)
        places = [(layer, head) for layer, heads in enumerate(self.heads.mass) for head in range(len(heads))]
        to_first = {(layer, head): sum(self.heads.mass[layer][head][:first]) for layer, head in places}
        between = {(layer, head): sum(self.heads.mass[layer][head][first:-own]) for layer, head in places}
        all_first, all_between = sum(to_first.values()) or 1.0, sum(between.values()) or 1.0
        parts = {place: (to_first[place] / all_first, between[place] / all_between) for place in places}
        ranked = sorted(places, key=lambda place: max(parts[place]))
        dummies = set(ranked[: round(self.dummy_share * len(places))])

        def kind_of(place: tuple[int, int]) -> str:
            of_first, of_between = parts[place]
            return "dummy" if place in dummies else "first" if of_first >= of_between else "between"

        layers, heads = self.heads.size
        return [
            {
                kind: tuple(head for head in range(heads) if kind_of((layer, head)) == kind)
                for kind in ("first", "between", "dummy")
            }
            for layer in range(layers)
        ]

    def keep_sets(self, layer: int, finished_chunks: int) -> Sequence[KeepSet]:
        kinds = self._kinds[layer]
        return (
            KeepSet(kinds["first"], self.first_frames, 0),
            KeepSet(kinds["dummy"], 0, self.dummy_frames),
            KeepSet(kinds["between"], 0, self.recent_frames),
        )
