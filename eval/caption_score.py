"""Does a generated clip show what its caption says? Answered by tracking the shapes; no learned model.

For clips of the embedded models only, whose captions follow the grammar of `eval.scenes`: one or two coloured shapes on
an even or striped background, on a torus (a shape leaving on one side comes in on the other).

One rule decides every attribute: it is seen when it holds in at least 90 % of the frames, and None otherwise. So a clip
that changes colour half-way, loses its shape, or falls apart into several blobs is wrong, never an average.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.backdrop import LAG_FRAMES, Backdrop, camera, even_backdrop, palette, striped_backdrop
from eval.clips import Clip, check_clip
from eval.scenes import BACKGROUNDS, COLOURS, SIZE, Scene, Thing, scene_of
from eval.shape_tracking import MIN_SHARE, Floats, Floats32, TrackedShape, agreed, between_walls, nearest, track

CHUNK_FRAMES = 24
ATTRIBUTES = ("colour_right", "shape_right", "motion_right", "background_right", "camera_right", "right")

MIN_DIFFERENCE = 0.1  # grey levels, mean over a frame; frames closer than that look identical


@dataclass(frozen=True)
class CaptionScore:
    """What was seen in a clip (None: nothing that holds throughout) and whether its caption says so.

    Attributes:
        colour, shape, motion, background, camera: words of the caption grammar; of two shapes "red and blue".
        speed_pixels: median pixels a frame of the first shape; None where it stays still.
        right: colour, shape and motion are all right; on stripes, background and camera too.
        seam_ratio: mean absolute difference of the two frames at a chunk border, averaged over the borders, divided by
            the median of that difference inside chunks; both are at least 0.1 grey levels. 1.0 is no seam; None where
            there is no chunk border.
        position_jump_pixels: how far, at worst over the chunk borders, the step of the tracked centre goes beyond the
            steps before and after it; about 0 in a smooth motion. None where there is no border or no tracked shape.
    """

    colour: str | None
    shape: str | None
    motion: str | None
    speed_pixels: float | None
    background: str | None
    camera: str | None
    colour_right: bool
    shape_right: bool
    motion_right: bool
    background_right: bool
    camera_right: bool
    right: bool
    seam_ratio: float | None
    position_jump_pixels: float | None


def score(
    frames: Clip, caption: str, chunk_frames: int = CHUNK_FRAMES, first_chunk_frames: int | None = None
) -> CaptionScore:
    """Compare one clip with its caption.

    Args:
        frames: uint8 [F, 64, 64, 3], RGB, F >= 1. Motion needs F > 3.
        caption: within the grammar of `eval.scenes`.
        chunk_frames: frames of a chunk, > 3. Motion is read inside chunks, so a jump at a border shows in the seam
            figures alone.
        first_chunk_frames: frames of the first chunk, where it has fewer (SkyReels-V2); None: as many as the others.

    Raises:
        TypeError: frames is not a uint8 array.
        ValueError: frames has another shape, the caption is outside the grammar, or the chunks' frames are too few.
    """
    scene = scene_of(caption)
    return _score(frames, scene, _chunk_of_frames(frames, chunk_frames, first_chunk_frames), is_part=False)


def _score(frames: Clip, scene: Scene, chunk: NDArray[np.intp], is_part: bool) -> CaptionScore:
    """`score`; a part of a clip shows a bounce as well where the shape is on its way from one wall to the other."""
    # Colour planes: arithmetic on an innermost axis of three is several times slower.
    pixels = frames.reshape(len(frames), SIZE * SIZE, 3).transpose(0, 2, 1).astype(np.float32, order="C")
    backdrop = striped_backdrop(frames) if scene.striped else even_backdrop(frames)
    seen = [track(_alone(pixels, backdrop, thing, scene), backdrop, chunk) for thing in scene.things]
    background = agreed(nearest(backdrop.tone, palette(scene.striped)), tuple(BACKGROUNDS))
    pan = "" if backdrop.waves is None else camera(backdrop.waves, chunk, MIN_SHARE)

    pairs = list(zip(seen, scene.things, strict=True))
    right = {
        "colour_right": all(one.colour == thing.colour for one, thing in pairs),
        "shape_right": all(one.shape == thing.shape for one, thing in pairs),
        "motion_right": all(_moves(one, scene.motion, is_part) for one in seen),
        "background_right": background == scene.background,
        "camera_right": pan == scene.camera,
    }
    behind = ("background_right", "camera_right") if scene.striped else ()
    jumps = [_position_jump(one.path, chunk) for one in seen if one.path is not None]
    return CaptionScore(
        colour=_joined(one.colour for one in seen),
        shape=_joined(one.shape for one in seen),
        motion=_joined(one.motion for one in seen),
        speed_pixels=seen[0].speed,
        background=background,
        camera=pan,
        **right,
        right=all(right[name] for name in ("colour_right", "shape_right", "motion_right", *behind)),
        seam_ratio=_seam_ratio(pixels, chunk),
        position_jump_pixels=max((jump for jump in jumps if jump is not None), default=None),
    )


def _alone(pixels: Floats32, backdrop: Backdrop, thing: Thing, scene: Scene) -> Floats32:
    """The pixels with the other shape painted over, where the scene has one: all that differs from the background
    towards its colour rather than towards the thing's. So neither hides what should not be there at all."""
    others = [other for other in scene.things if other != thing]
    if not others:
        return pixels
    difference = pixels - backdrop.rgb

    def likeness(colour: str) -> Floats32:
        towards = np.array(COLOURS[colour], dtype=np.float32) - backdrop.tone
        return np.einsum("fcp,fc->fp", difference, towards / np.linalg.norm(towards, axis=1, keepdims=True))

    theirs = likeness(others[0].colour) > likeness(thing.colour)
    return np.where(theirs[:, None], backdrop.rgb, pixels)


def _moves(seen: TrackedShape, motion: str, is_part: bool) -> bool:
    if is_part and motion == "bouncing" and seen.motion in ("moving up", "moving down"):
        return seen.path is not None and between_walls(seen.path)
    return seen.motion == motion


def _joined(words: Iterable[str | None]) -> str | None:
    """Words of all shapes, "red and blue"; None where one was not seen."""
    said = list(words)
    return None if None in said else " and ".join(word for word in said if word is not None)


def per_chunk(
    frames: Clip, caption: str, chunk_frames: int = CHUNK_FRAMES, first_chunk_frames: int | None = None
) -> list[CaptionScore]:
    """Score every chunk by itself: where a long clip leaves its caption. Seam figures are None, there is no border.

    A last chunk of less than half the length shows too little motion and is scored with the chunk before it. Where a
    shape that should bounce meets no wall within a chunk, its motion reads as up or down, and is right.

    Arguments and errors are those of `score`.
    """
    chunk = _chunk_of_frames(frames, chunk_frames, first_chunk_frames)
    starts = [0, *(np.flatnonzero(_borders(chunk)) + 1).tolist()]
    if len(starts) > 1 and len(frames) - starts[-1] < chunk_frames / 2:
        starts.pop()
    stops = [*starts[1:], len(frames)]
    scene = scene_of(caption)
    parts = (frames[start:stop] for start, stop in zip(starts, stops, strict=True))
    return [_score(part, scene, np.zeros(len(part), np.intp), is_part=True) for part in parts]


def _chunk_of_frames(frames: Clip, chunk_frames: int, first_chunk_frames: int | None) -> NDArray[np.intp]:
    """Index of each frame's chunk, [F], once the input is known to be right."""
    check_clip(frames, "frames")
    if frames.shape[1:3] != (SIZE, SIZE):
        raise ValueError(
            f"caption scores are defined for the embedded models' {SIZE}x{SIZE} frames, got shape {list(frames.shape)}"
        )
    if chunk_frames <= LAG_FRAMES:
        raise ValueError(
            f"chunk_frames must be more than {LAG_FRAMES}, over which a motion is read; got {chunk_frames}"
        )
    first = chunk_frames if first_chunk_frames is None else first_chunk_frames
    if not 1 <= first <= chunk_frames:
        raise ValueError(f"first_chunk_frames must be 1 to chunk_frames={chunk_frames}; got {first}")
    return (np.arange(len(frames)) + chunk_frames - first) // chunk_frames


def _borders(chunk: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which of the F - 1 steps from a frame to the next lead into another chunk."""
    return np.diff(chunk) > 0


def _seam_ratio(pixels: NDArray[np.float32], chunk: NDArray[np.intp]) -> float | None:
    border = _borders(chunk)
    if not border.any():
        return None
    difference = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2))
    across, inside = difference[border].mean(), np.median(difference[~border])
    return float(max(across, MIN_DIFFERENCE) / max(inside, MIN_DIFFERENCE))


def _position_jump(path: Floats, chunk: NDArray[np.intp]) -> float | None:
    """Largest distance in pixels of a border's step from the box that the steps before and after it span.

    Each side is the median of up to three steps. A shape that turns at a wall just there stays within the box.
    """
    step = np.diff(path, axis=0)
    jumps = []
    for index in np.flatnonzero(_borders(chunk)):
        sides = [
            side for side in (step[index - LAG_FRAMES : index], step[index + 1 : index + 1 + LAG_FRAMES]) if len(side)
        ]
        medians = np.stack([np.median(side, axis=0) for side in sides])
        jumps.append(np.hypot(*(step[index] - np.clip(step[index], medians.min(axis=0), medians.max(axis=0)))))
    return float(max(jumps)) if jumps else None
