"""What a selector by head is: heads that were sorted before, each kind with frames of its own that it keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flowcache.calibration import Calibration
from flowcache.kv.head_map import HeadMap
from flowcache.kv.select.base import Entries, KeySelector, Selection


@dataclass(frozen=True)
class KeepSet:
    """What some heads of a layer keep of finished chunks, in latent frames.

    Attributes:
        heads: which heads, of a layer's key-value heads.
        sink_frames: the first frames; they always stay.
        recent_frames: the newest ones beside them.
        patch_frames: so many frames' worth of patches of those that left ``recent_frames`` last: the patches that are
            least like the same place in the frame after, in any frames. They take the place of those kept before.
        patches: a frame is cut into at most so many equal patches of consecutive tokens.
    """

    heads: tuple[int, ...]
    sink_frames: int
    recent_frames: int
    patch_frames: int = 0
    patches: int = 1


@dataclass(kw_only=True)
class HeadSelector(KeySelector):
    """Sorts a layer's heads into kinds. It keeps frames and takes no budget; the cache (flowcache.kv.heads) does the
    rest, in an attention call for every kind, so that heads that keep less also take less time.

    Attributes:
        heads: a file that was calibrated on the model, or what it holds; None is refused where it is needed.
    """

    by_head: ClassVar[bool] = True
    heads_apart: ClassVar[bool] = False
    calibrated: ClassVar[tuple[type[Calibration], ...]] = (HeadMap,)
    heads: HeadMap | str | Path | None = None

    @abstractmethod
    def keep_sets(self, layer: int, finished_chunks: int) -> Sequence[KeepSet]:
        """What a layer's heads keep once so many chunks are finished; every head is in one of them.

        They hold the same heads and sinks however many chunks are finished.
        """

    def check_heads(self, num_layers: int, num_heads: int) -> None:
        """Refuse to run on a network whose heads were not sorted. Raises ValueError."""
        if self.heads is None:
            raise ValueError(
                f"{type(self).__name__} needs heads that were sorted on this model and setting; make them with python "
                "-m experiments.calibrate kv=forcing_kv model=... setting=..., and choose kv.heads=<the file>"
            )
        if self.heads.size != (num_layers, num_heads):
            raise ValueError(
                f"the heads {self.heads.name} are of {self.heads.size[0]} layers of {self.heads.size[1]} heads, and "
                f"this network has {num_layers} of {num_heads}; choose kv.heads=<a file made on it>, from python -m "
                "experiments.calibrate kv=forcing_kv"
            )

    def select(self, entries: Entries, budget: int) -> Selection:
        raise NotImplementedError(f"{type(self).__name__} keeps frames by head, and chooses under no budget")
