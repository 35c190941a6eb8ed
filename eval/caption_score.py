"""Does a generated clip show what its caption says? Answered by tracking the shapes; no learned model.

For clips of the embedded models only, whose captions follow the grammar of `eval.scenes`: one or two coloured shapes on
an even or striped background, on a torus (a shape leaving on one side comes in on the other).

One rule decides every attribute: it is seen when it holds in at least 90 % of the frames, and None otherwise. So a clip
that changes colour half-way, loses its shape, or falls apart into several blobs is wrong, never an average.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from eval.backdrop import LAG_FRAMES, Backdrop, camera, even_backdrop, palette, striped_backdrop
from eval.clips import Clip, check_clip
from eval.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZE,
    SPEEDS,
    WALL,
    Scene,
    Thing,
    depth_inside,
    scene_of,
)

CHUNK_FRAMES = 24
ATTRIBUTES = ("colour_right", "shape_right", "motion_right", "background_right", "camera_right", "right")

MIN_SHARE = 0.9  # of the frames (for motion: of the moments) in which an attribute must hold
MAX_COLOUR_DISTANCE = 80.0  # RGB levels; the closest two colours of the palette are 119 apart
MIN_CONTRAST = 50.0  # RGB levels from the background; the faintest pair, purple on grey, has 112
MIN_IOU = 0.7  # with the best template; below it a frame shows no shape, or more than one
CORE_RADIUS = 5.0  # pixels around the centre that lie well inside every shape
STILL_SPEED = 0.3  # pixels a frame
BETWEEN_SPEEDS = sum(SPEEDS.values()) / 2  # pixels a frame; faster is racing
WALL_TOLERANCE = 4.0  # pixels a bouncing shape's centre may go beyond where the data turns it back
MIN_DIFFERENCE = 0.1  # grey levels, mean over a frame; frames closer than that look identical

_HALF_WINDOW = 22  # pixels; the tip of a triangle is 18 from its centre
_OFFSETS = (-0.375, -0.125, 0.125, 0.375)  # sub-pixel positions of a template
_SCALES = (0.85, 1.0, 1.15)  # a slightly small circle is still a circle
_SMOOTHING_FRAMES = 9  # the match with the templates is averaged over so many frames before a shape is named

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


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
    seen = [_seen(_alone(pixels, backdrop, thing, scene), backdrop, chunk) for thing in scene.things]
    background = _agreed(_nearest(backdrop.tone, palette(scene.striped)), tuple(BACKGROUNDS))
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


@dataclass(frozen=True)
class _Seen:
    """What was seen of one shape; path: float64 [F, 2] (x, y) in pixels, None where there is none throughout."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    speed: float | None = None
    path: Floats | None = None


def _seen(pixels: Floats32, backdrop: Backdrop, chunk: NDArray[np.intp]) -> _Seen:
    """The one shape in pixels [F, 3, 4096]."""
    mask = _foreground(pixels, backdrop.rgb)
    centre = _centre(mask)
    iou = _template_iou(mask, centre)
    visible = iou.max(axis=1) >= MIN_IOU
    if visible.mean() < MIN_SHARE:
        return _Seen()
    smooth = uniform_filter1d(iou[visible], _SMOOTHING_FRAMES, axis=0, mode="nearest")
    path = _path(centre, visible)
    motion, speed = _motion(path, chunk)
    return _Seen(
        _agreed(_core_colour(pixels, centre)[visible], tuple(COLOURS)),
        _agreed(smooth.argmax(axis=1), SHAPES),
        motion,
        speed,
        path,
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


def _moves(seen: _Seen, motion: str, is_part: bool) -> bool:
    if is_part and motion == "bouncing" and seen.motion in ("moving up", "moving down"):
        return seen.path is not None and _between_walls(seen.path)
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


def _share(holds: NDArray[np.bool_]) -> bool:
    return bool(holds.mean() >= MIN_SHARE)


def _agreed(labels: NDArray[np.intp], names: Sequence[str]) -> str | None:
    """The name that the labels agree on. labels: [F], an index into names, or -1 for none of them."""
    counts = np.bincount(labels + 1, minlength=len(names) + 1)[1:]
    best = int(counts.argmax())
    return names[best] if counts[best] >= MIN_SHARE * len(labels) else None


def _nearest(rgb: NDArray[np.float32], *palettes: dict[str, tuple[int, int, int]]) -> NDArray[np.intp]:
    """Index [...] into the first palette of each colour [..., 3]; -1 if far from it or nearer to another palette."""
    known = np.array([value for palette in palettes for value in palette.values()], dtype=np.float32)
    square = ((rgb[..., None, :] - known) ** 2).sum(axis=-1)
    best = square.argmin(axis=-1)
    return np.where((square.min(axis=-1) <= MAX_COLOUR_DISTANCE**2) & (best < len(palettes[0])), best, -1)


def _sharpened(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the faint noise around a shape and inside it. Much steeper, and edges would jump from pixel to pixel."""
    return np.clip((coverage - 0.125) / 0.75, 0, 1)


def _foreground(pixels: Floats32, background_rgb: Floats32) -> Floats32:
    """How much of each pixel [F, 3, 4096] something else than the background covers, 0 to 1, [F, 64, 64].

    A pixel's distance from the background grows in proportion to that; the unit is the mean distance of the pixels that
    clearly differ, weighted by the distance itself so that the shape's edge hardly counts.
    """
    distance = np.sqrt(np.square(pixels - background_rgb).sum(axis=1))
    clear = np.where(distance > MIN_CONTRAST, distance, 0)
    unit = np.einsum("fp,fp->f", clear, clear) / np.maximum(clear.sum(axis=1), 1)
    return _sharpened(distance / np.maximum(unit, 2 * MIN_CONTRAST)[:, None]).reshape(-1, SIZE, SIZE)


def _centre(mask: NDArray[np.float32]) -> Floats:
    """Circular mean of each mask [F, 64, 64] on the torus, (x, y) in [0, 64) pixels, [F, 2]."""
    turn = np.exp(2j * np.pi * np.arange(SIZE) / SIZE)
    phasor = np.stack([mask.sum(axis=1) @ turn, mask.sum(axis=2) @ turn], axis=1)
    return np.angle(phasor) * SIZE / (2 * np.pi) % SIZE


@lru_cache(maxsize=1)
def _templates() -> NDArray[np.float32]:
    """Sharpened masks of every shape at every scale and sub-pixel position, [shapes * scales * 16, 45 * 45]."""
    masks = []
    for shape in SHAPES:
        for scale in _SCALES:
            torus = torch.arange(SIZE, dtype=torch.float32) - SIZE // 2
            # The circular mean of a triangle is not its centroid: place templates by what _centre() will say of them.
            middle = _centre(_rendered(shape, scale, torus, torus)[None])[0] - SIZE // 2
            window = torch.arange(-_HALF_WINDOW, _HALF_WINDOW + 1, dtype=torch.float32)
            for y in _OFFSETS:
                for x in _OFFSETS:
                    masks.append(_rendered(shape, scale, window - x + middle[0], window - y + middle[1]).ravel())
    return np.stack(masks)


def _rendered(shape: str, scale: float, dx: torch.Tensor, dy: torch.Tensor) -> NDArray[np.float32]:
    inside = scale * depth_inside(shape, dx[None, None, :] / scale, dy[None, :, None] / scale)[0]
    return _sharpened((inside + 0.5).clamp(0, 1).numpy())


def _template_iou(mask: NDArray[np.float32], centre: Floats) -> NDArray[np.float32]:
    """Best soft intersection over union (a.b / (a.a + b.b - a.b)) of each frame with each shape's templates, [F, 3].

    What a frame shows outside the window around its centre counts into the union.
    """
    templates = _templates()
    around = np.arange(-_HALF_WINDOW, _HALF_WINDOW + 1)
    columns, rows = ((np.rint(centre).astype(int)[:, :, None] + around) % SIZE).transpose(1, 0, 2)
    window = mask[np.arange(len(mask))[:, None, None], rows[:, :, None], columns[:, None, :]]
    common = window.reshape(len(mask), -1) @ templates.T
    mask_square = np.einsum("fyx,fyx->f", mask, mask)
    template_square = np.einsum("np,np->n", templates, templates)
    iou = common / (mask_square[:, None] + template_square - common)
    return iou.reshape(len(mask), len(SHAPES), -1).max(axis=2)


def _core_colour(pixels: NDArray[np.float32], centre: Floats) -> NDArray[np.intp]:
    """Index into COLOURS of the inside of the shape in each frame, [F]; -1 for no colour or more than one."""
    reach = np.arange(-int(CORE_RADIUS), int(CORE_RADIUS) + 1)
    dx, dy = (offset.ravel() for offset in np.meshgrid(reach, reach))
    near = np.hypot(dx, dy) <= CORE_RADIUS
    columns, rows = np.rint(centre).astype(int).T[:, :, None] + np.stack([dx[near], dy[near]])[:, None]
    core = pixels[np.arange(len(pixels))[:, None], :, rows % SIZE * SIZE + columns % SIZE]
    labels = _nearest(core, COLOURS, BACKGROUNDS)
    counts = np.stack([(labels == index).sum(axis=1) for index in range(len(COLOURS))], axis=1)
    return np.where(counts.max(axis=1) >= MIN_SHARE * labels.shape[1], counts.argmax(axis=1), -1)


def _path(centre: Floats, visible: NDArray[np.bool_]) -> Floats:
    """The centre [F, 2] followed across the torus' seam, and drawn straight through frames that show no shape."""
    frame = np.arange(len(centre))
    followed = np.unwrap(centre[visible], period=SIZE, axis=0)
    return np.stack([np.interp(frame, frame[visible], followed[:, axis]) for axis in (0, 1)], axis=1)


def _motion(path: Floats, chunk: NDArray[np.intp]) -> tuple[str | None, float | None]:
    """Motion, and speed in pixels a frame, of the centre's path [F, 2]."""
    start = np.flatnonzero(chunk[:-LAG_FRAMES] == chunk[LAG_FRAMES:])
    if start.size == 0:
        return None, None
    velocity = (path[start + LAG_FRAMES] - path[start]) / LAG_FRAMES
    if _share(np.hypot(*velocity.T) < STILL_SPEED):
        return "staying still", None
    for way, (x, y) in DIRECTIONS.items():
        along, across = velocity @ (x, y), np.abs(velocity @ (y, x))
        if _share((along >= STILL_SPEED) & (across <= along / 2)):
            speed = float(np.median(along))
            return f"{'racing' if speed > BETWEEN_SPEEDS else 'moving'} {way}", speed
    if _bounces(path, velocity):
        return "bouncing", float(np.median(np.abs(velocity[:, 1])))
    return None, None


def _bounces(path: Floats, velocity: Floats) -> bool:
    """Whether the height alone changes, both ways, turning no more often than walls make it, and between the walls."""
    sideways, pace = np.abs(velocity).T
    # The maximum of three passes over the moment in which the shape turns, at the clip's ends too.
    moving = maximum_filter1d(pace, 3, mode="constant", cval=np.inf)
    turns = np.count_nonzero(np.diff(np.sign(velocity[pace >= STILL_SPEED, 1])))
    return (
        _share((moving >= STILL_SPEED) & (sideways <= moving / 2))
        and _between_walls(path)
        and 1 <= turns <= 1 + np.median(pace) * len(path) / (SIZE / 2 - WALL)
    )


def _between_walls(path: Floats) -> bool:
    return _share(np.abs(path[:, 1] % SIZE - SIZE / 2) <= SIZE / 2 - WALL + WALL_TOLERANCE)


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
