"""The one shape of a clip: where it is in every frame, which it is, of which colour, and how it moves; by templates.

For eval.caption_score; no learned model. What holds in fewer than 90 % of the frames is not seen: None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from eval.backdrop import LAG_FRAMES, Backdrop
from eval.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZE, SPEEDS, WALL, depth_inside

MIN_SHARE = 0.9  # of the frames (for motion: of the moments) in which an attribute must hold
MAX_COLOUR_DISTANCE = 80.0  # RGB levels; the closest two colours of the palette are 119 apart
MIN_CONTRAST = 50.0  # RGB levels from the background; the faintest pair, purple on grey, has 112
MIN_IOU = 0.7  # with the best template; below it a frame shows no shape, or more than one
CORE_RADIUS = 5.0  # pixels around the centre that lie well inside every shape
STILL_SPEED = 0.3  # pixels a frame
BETWEEN_SPEEDS = sum(SPEEDS.values()) / 2  # pixels a frame; faster is racing
WALL_TOLERANCE = 4.0  # pixels a bouncing shape's centre may go beyond where the data turns it back

_HALF_WINDOW = 22  # pixels; the tip of a triangle is 18 from its centre
_OFFSETS = (-0.375, -0.125, 0.125, 0.375)  # sub-pixel positions of a template
_SCALES = (0.85, 1.0, 1.15)  # a slightly small circle is still a circle
_SMOOTHING_FRAMES = 9  # the match with the templates is averaged over so many frames before a shape is named

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class TrackedShape:
    """What was seen of one shape; None: nothing that holds throughout.

    Attributes:
        colour, shape, motion: words of the caption grammar (eval.scenes).
        speed: pixels a frame, median; None where it stays still.
        path: float64 [F, 2] of its centre, (x, y) in pixels, not turned back at the torus' seam.
    """

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    speed: float | None = None
    path: Floats | None = None


def track(pixels: Floats32, backdrop: Backdrop, chunk: NDArray[np.intp]) -> TrackedShape:
    """The one shape in pixels [F, 3, 4096] before a backdrop; motion is read within chunks, ``chunk`` [F] by frame."""
    mask = _foreground(pixels, backdrop.rgb)
    centre = _centre(mask)
    iou = _template_iou(mask, centre)
    visible = iou.max(axis=1) >= MIN_IOU
    if visible.mean() < MIN_SHARE:
        return TrackedShape()
    smooth = uniform_filter1d(iou[visible], _SMOOTHING_FRAMES, axis=0, mode="nearest")
    path = _path(centre, visible)
    motion, speed = _motion(path, chunk)
    return TrackedShape(
        agreed(_core_colour(pixels, centre)[visible], tuple(COLOURS)),
        agreed(smooth.argmax(axis=1), SHAPES),
        motion,
        speed,
        path,
    )


def _share(holds: NDArray[np.bool_]) -> bool:
    return bool(holds.mean() >= MIN_SHARE)


def agreed(labels: NDArray[np.intp], names: Sequence[str]) -> str | None:
    """The name that the labels agree on. labels: [F], an index into names, or -1 for none of them."""
    counts = np.bincount(labels + 1, minlength=len(names) + 1)[1:]
    best = int(counts.argmax())
    return names[best] if counts[best] >= MIN_SHARE * len(labels) else None


def nearest(rgb: NDArray[np.float32], *palettes: dict[str, tuple[int, int, int]]) -> NDArray[np.intp]:
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
    labels = nearest(core, COLOURS, BACKGROUNDS)
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
        and between_walls(path)
        and 1 <= turns <= 1 + np.median(pace) * len(path) / (SIZE / 2 - WALL)
    )


def between_walls(path: Floats) -> bool:
    """Whether a path's height [F, 2] stays where bouncing shapes of the data turn back."""
    return _share(np.abs(path[:, 1] % SIZE - SIZE / 2) <= SIZE / 2 - WALL + WALL_TOLERANCE)
