"""Captioned clips made on the fly: one coloured shape moving over a plain background.

The data of the embedded models. Small enough to learn in an hour on a CPU, and every caption can be checked in the
generated video by tracking the shape (eval/caption_score.py). Rendering is anti-aliased and exact, so motion is smooth
at sub-pixel speeds and a clip's frames are a function of (scene, start) alone.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

SIZE = 64  # pixels, height and width
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 210, 40),
    "purple": (165, 60, 205),
    "cyan": (40, 200, 215),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUNDS = {"dark": (18, 18, 26), "grey": (118, 118, 122), "light": (236, 234, 228)}
DIRECTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}
MOTIONS = (*DIRECTIONS, "bouncing", "staying still")
SPEED = 2.0  # pixels a frame
NUM_HELD_OUT = 64

_CIRCLE_RADIUS, _SQUARE_HALF_SIDE, _TRIANGLE_INRADIUS = 13.0, 11.5, 9.0
WALL = 16.0  # pixels from the frame's upper and lower edge to the centre of a shape that bounces back
_START_GRID = 8  # pixels; see `render`


@dataclass(frozen=True, order=True)
class Scene:
    """What a caption says."""

    colour: str
    shape: str
    motion: str
    background: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion} on a {self.background} background"


def all_scenes() -> list[Scene]:
    """Every scene the grammar can say, in a fixed order."""
    return [Scene(*values) for values in itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)]


def held_out_scenes() -> list[Scene]:
    """The 64 scenes never trained on: the prompts of the embedded setting.

    A fixed random draw, ordered so that the first few already show most attributes: each next scene is the one whose
    attributes were seen least so far.
    """
    left = random.Random(2602).sample(all_scenes(), NUM_HELD_OUT)
    seen: Counter[str] = Counter()
    ordered = []
    while left:
        scene = min(left, key=lambda s: sum(seen[value] for value in astuple(s)))
        left.remove(scene)
        seen.update(astuple(scene))
        ordered.append(scene)
    return ordered


def training_scenes() -> list[Scene]:
    held_out = set(held_out_scenes())
    return [scene for scene in all_scenes() if scene not in held_out]


def scene_of(caption: str) -> Scene:
    """The scene a caption describes. Raises ValueError for a caption outside the grammar."""
    for scene in all_scenes():
        if scene.caption == caption.strip().lower():
            return scene
    raise ValueError(
        f"caption {caption!r} is outside the grammar of the embedded model's data; "
        f"write it like {all_scenes()[0].caption!r} (colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; "
        f"motions {', '.join(MOTIONS)}; backgrounds {', '.join(BACKGROUNDS)})"
    )


def render(scene: Scene, num_frames: int, generator: torch.Generator) -> Tensor:
    """One clip of a scene, uint8 [num_frames, 3, 64, 64]; the generator draws where the shape starts.

    Starts lie on a grid of 8 pixels, and a shape moves by 8 pixels in a latent frame (4 frames): at the start of every
    latent frame it is back on the 8-pixel grid of the latents, and a wall turns it there too. Few distinct patches,
    which a small model draws sharply and places exactly.
    """
    centre = _path(scene, num_frames, generator)
    grid = torch.arange(SIZE, dtype=torch.float32)
    # The frame is a torus: a shape leaving on one side comes in on the other.
    dx = (grid[None, :] - centre[:, :1] + SIZE / 2) % SIZE - SIZE / 2
    dy = (grid[None, :] - centre[:, 1:] + SIZE / 2) % SIZE - SIZE / 2
    coverage = (depth_inside(scene.shape, dx[:, None, :], dy[:, :, None]) + 0.5).clamp(0, 1)[:, None]
    colour = torch.tensor(COLOURS[scene.colour], dtype=torch.float32)[None, :, None, None]
    background = torch.tensor(BACKGROUNDS[scene.background], dtype=torch.float32)[None, :, None, None]
    return (coverage * colour + (1 - coverage) * background).round().to(torch.uint8)


def _path(scene: Scene, num_frames: int, generator: torch.Generator) -> Tensor:
    """Centre of the shape in every frame, float32 [num_frames, 2] (x, y) in pixels."""
    start = torch.randint(0, SIZE // _START_GRID, (2,), generator=generator) * float(_START_GRID)
    time = torch.arange(num_frames, dtype=torch.float32)[:, None]
    if scene.motion == "staying still":
        return start.expand(num_frames, 2)
    if scene.motion == "bouncing":
        span = SIZE - 2 * WALL
        phase = (start[1] * (2 * span / SIZE) + time * SPEED) % (2 * span)
        height = WALL + span - (phase - span).abs()
        return torch.cat([start[0].expand(num_frames, 1), height], dim=1)
    return start + time * SPEED * torch.tensor(DIRECTIONS[scene.motion], dtype=torch.float32)


def depth_inside(shape: str, dx: Tensor, dy: Tensor) -> Tensor:
    """Signed distance in pixels to the shape's edge, positive inside; dx and dy broadcast to [F, H, W]."""
    if shape == "circle":
        return _CIRCLE_RADIUS - torch.hypot(dx, dy)
    if shape == "square":
        return _SQUARE_HALF_SIDE - torch.maximum(dx.abs(), dy.abs())
    slanted = dx.abs() * math.cos(math.pi / 6) - dy * math.sin(math.pi / 6)
    return _TRIANGLE_INRADIUS - torch.maximum(slanted, dy.expand(slanted.shape))
