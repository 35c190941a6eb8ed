"""Prompts that change on the way: from which latent frame on each counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Generator

from flowcache.models.base import check_request
from flowcache.models.wan.blocks import Blocks
from flowcache.models.wan.config import TEMPORAL_FACTOR
from flowcache.options import is_count


def check_prompts(
    prompt: str | None, prompts: Sequence[tuple[int, str]] | None, seed: int | Generator
) -> list[tuple[int, str]]:
    """Pairs of a first pixel frame and a prompt, of either. Raises ValueError for what says nothing, or twice."""
    if prompts is None:
        check_request(prompt, seed)
        return [(0, prompt)]
    if prompt is not None:
        raise ValueError("give prompt or prompts, not both; prompts=[(0, ...), ...] holds the first one too")
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(map(_is_pair, prompts)):
        raise ValueError(
            f"prompts={prompts!r} must be pairs of a first frame, a whole number of at least 0, and a prompt, such as "
            '[(0, "a cat sleeps"), (40, "the cat wakes up")]'
        )
    for _, text in prompts:
        check_request(text, seed)
    starts = [start for start, _ in prompts]
    if starts[0] != 0:
        raise ValueError(f"prompts begin at frame {starts[0]}, and the frames before have none; begin with frame 0")
    for earlier, later in pairwise(starts):
        if later == earlier:
            raise ValueError(f"prompts hold two for frame {later}; give one, or another frame")
        if later < earlier:
            raise ValueError(f"prompts must rise by frames, and frame {later} comes after frame {earlier}")
    return [(start, text) for start, text in prompts]


def latent_starts(starts: Sequence[int], blocks: Blocks, given: int, continues: bool) -> list[int]:
    """Pixel frames, of those to generate, -> latent frames of the video, for every prompt but the first.

    Args:
        starts: of all prompts, rising.
        blocks: of the video.
        given: latent frames before the first generated one.
        continues: pixel frames count from there, and not from the video's beginning.

    Raises ValueError for a prompt that no chunk begins with.
    """
    before = given if continues else 0
    begins = [blocks.start(chunk) for chunk in range(blocks.chunks_of(given), blocks.num_chunks)]
    # A chunk's first pixel frame, counted in the same way; a video's first latent frame is a single one.
    single = 0 if before else TEMPORAL_FACTOR - 1
    pixels = {frame: max(0, TEMPORAL_FACTOR * (frame - before) - single) for frame in begins}
    found = []
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else None
        own = [frame for frame in begins if pixels[frame] >= start and (end is None or pixels[frame] < end)]
        if not own:
            raise ValueError(
                f"no chunk begins from frame {start} {'on' if end is None else f'to {end - 1}'}, so that its prompt "
                f"would never count; chunks begin with frames {', '.join(map(str, pixels.values()))}"
            )
        found.append(own[0])
    return found[1:]


def _is_pair(item: object) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and is_count(item[0], 0) and isinstance(item[1], str)
