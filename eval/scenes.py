"""Captioned clips made on the fly: coloured shapes moving over a background.

The data of the embedded models. Small enough to learn in hours on a CPU, and every caption can be checked in the
generated video by tracking the shapes (eval/caption_score.py). Rendering is anti-aliased and exact, so motion is smooth
at sub-pixel speeds and a clip's frames are a function of (scene, start) alone.

The plain half of the grammar has one shape at one speed on an even background. The rich half adds a faster speed
("racing"), a second shape, and backgrounds of stripes that stand still or that a camera pans over.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
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
STRIPES = {"dark": (54, 54, 62), "grey": (154, 154, 158), "light": (200, 198, 192)}  # every other stripe of a pattern
SPEEDS = {"moving": 2.0, "racing": 4.0}  # pixels a frame
SPEED = SPEEDS["moving"]  # of a bouncing shape and of a camera too
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
VELOCITIES = {
    f"{pace} {way}": (speed * x, speed * y) for pace, speed in SPEEDS.items() for way, (x, y) in DIRECTIONS.items()
}
MOTIONS = (*VELOCITIES, "bouncing", "staying still")
PLAIN_MOTIONS = tuple(motion for motion in MOTIONS if not motion.startswith("racing"))
CAMERAS = {"": 0.0, "panning left": -SPEED, "panning right": SPEED}  # pixels a frame that the background moves
NUM_HELD_OUT = 64  # of each half of the grammar

_CIRCLE_RADIUS, _SQUARE_HALF_SIDE, _TRIANGLE_INRADIUS = 13.0, 11.5, 9.0
WALL = 16.0  # pixels from the frame's upper and lower edge to the centre of a shape that bounces back
STRIPE_WIDTH = 8  # pixels
_START_GRID = 8  # pixels; see `render`


@dataclass(frozen=True, order=True)
class Thing:
    """A shape of a colour."""

    colour: str
    shape: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True, order=True)
class Scene:
    """What a caption says.

    Attributes:
        colour, shape: of the shape that is named first.
        motion: of it, and of the other if there is one.
        background: its colour.
        striped: the background has upright stripes.
        camera: which way stripes move in the picture, a key of ``CAMERAS``; without stripes none could be seen.
        second: another shape, of another colour. The two move side by side, half a frame apart, and never meet.
    """

    colour: str
    shape: str
    motion: str
    background: str
    striped: bool = False
    camera: str = ""
    second: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        first = Thing(self.colour, self.shape)
        return (first,) if self.second is None else (first, self.second)

    @property
    def caption(self) -> str:
        background = f"{'striped ' * self.striped}{self.background} background {self.camera}".strip()
        return f"{' and '.join(thing.caption for thing in self.things)} {self.motion} on a {background}"


def plain_scenes() -> list[Scene]:
    """Every scene of the plain half of the grammar, in a fixed order."""
    return [Scene(*values) for values in itertools.product(COLOURS, SHAPES, PLAIN_MOTIONS, BACKGROUNDS)]


def racing_scenes() -> list[Scene]:
    """Every scene of one fast shape on an even background."""
    racing = [motion for motion in MOTIONS if motion not in PLAIN_MOTIONS]
    return [Scene(*values) for values in itertools.product(COLOURS, SHAPES, racing, BACKGROUNDS)]


def striped_scenes() -> list[Scene]:
    """Every scene of one shape on stripes."""
    return [
        Scene(*values, striped=True, camera=camera)
        for *values, camera in itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS, CAMERAS)
    ]


def two_shape_scenes() -> list[Scene]:
    """Every scene of two shapes."""
    things = [Thing(*values) for values in itertools.product(COLOURS, SHAPES)]
    return [
        Scene(one.colour, one.shape, motion, background, second=other)
        for one, other, motion, background in itertools.product(things, things, MOTIONS, BACKGROUNDS)
        if one.colour != other.colour
    ]


RICH_KINDS = (racing_scenes, striped_scenes, two_shape_scenes)


def grammar_words() -> list[str]:
    """Every word of a caption, sorted."""
    parts = (COLOURS, SHAPES, MOTIONS, BACKGROUNDS, CAMERAS, ("a", "and", "on", "striped", "background"))
    return sorted({word for part in parts for said in part for word in said.split()})


def held_out_scenes() -> list[Scene]:
    """The 64 plain scenes never trained on: the prompts of the embedded setting.

    A fixed random draw, ordered so that the first few already show most attributes: each next scene is the one whose
    attributes were seen least so far.
    """
    return _spread(random.Random(2602).sample(plain_scenes(), NUM_HELD_OUT))


def held_out_rich_scenes() -> list[Scene]:
    """The 64 rich scenes never trained on: 16 that race, 24 on stripes, 24 of two shapes, in turns."""
    choice = random.Random(10825)
    chosen = [choice.sample(kind(), number) for kind, number in zip(RICH_KINDS, (16, 24, 24), strict=True)]
    ordered = [_spread(scenes) for scenes in chosen]
    return [scene for turn in itertools.zip_longest(*ordered) for scene in turn if scene is not None]


def _spread(left: list[Scene]) -> list[Scene]:
    seen: Counter[object] = Counter()
    ordered = []
    while left:
        scene = min(left, key=lambda s: sum(seen[value] for value in astuple(s)))
        left.remove(scene)
        seen.update(astuple(scene))
        ordered.append(scene)
    return ordered


def plain_training_scenes() -> list[Scene]:
    """Every plain scene that is not held out, in a fixed order."""
    held_out = set(held_out_scenes())
    return [scene for scene in plain_scenes() if scene not in held_out]


def training_scenes(choice: random.Random) -> Iterator[Scene]:
    """Scenes without end that are not held out: of every ten four plain ones, one that races, two or three on stripes
    and two or three of two shapes."""
    held_out = {_unordered(scene) for scene in held_out_rich_scenes()}
    kinds = [plain_training_scenes(), *([s for s in kind() if _unordered(s) not in held_out] for kind in RICH_KINDS)]
    while True:
        yield choice.choice(choice.choices(kinds, (0.4, 0.1, 0.25, 0.25))[0])


def _unordered(scene: Scene) -> tuple[object, ...]:
    """Equal for scenes that look the same."""
    return (frozenset(scene.things), scene.motion, scene.background, scene.striped, scene.camera)


_CAPTION = re.compile(
    r"a (?P<first>\w+ \w+)(?: and a (?P<second>\w+ \w+))? (?P<motion>\w+(?: \w+)?)"
    r" on a (?P<striped>striped )?(?P<background>\w+) background(?: (?P<camera>panning \w+))?"
)


def scene_of(caption: str) -> Scene:
    """The scene a caption describes. Raises ValueError for a caption outside the grammar."""
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is not None:
        scene = Scene(
            *match["first"].split(),
            match["motion"],
            match["background"],
            bool(match["striped"]),
            match["camera"] or "",
            Thing(*match["second"].split()) if match["second"] else None,
        )
        if _is_said(scene):
            return scene
    raise ValueError(
        f"caption {caption!r} is outside the grammar of the embedded model's data; "
        f"write it like {plain_scenes()[0].caption!r} (colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; "
        f"motions {', '.join(MOTIONS)}; backgrounds {', '.join(BACKGROUNDS)}, or striped ones such as "
        f"'striped dark background panning left'; two shapes of two colours are joined by 'and')"
    )


def _is_said(scene: Scene) -> bool:
    """Whether the grammar has the scene."""
    return (
        all(thing.colour in COLOURS and thing.shape in SHAPES for thing in scene.things)
        and scene.motion in MOTIONS
        and scene.background in BACKGROUNDS
        and scene.camera in CAMERAS
        and (scene.striped or not scene.camera)
        and len({thing.colour for thing in scene.things}) == len(scene.things)
        and not (scene.second and scene.striped)
    )


def render(scene: Scene, num_frames: int, generator: torch.Generator) -> Tensor:
    """One clip of a scene, uint8 [num_frames, 3, 64, 64]; the generator draws where everything starts.

    Starts lie on a grid of 8 pixels, and a shape moves by 8 pixels in a latent frame (4 frames), or by 16 where it
    races: at the start of every latent frame it is back on the 8-pixel grid of the latents, and a wall turns it there
    too. Stripes stand on that grid. Few distinct patches, which a small model draws sharply and places
    exactly.
    """
    start = torch.randint(0, SIZE // _START_GRID, (2,), generator=generator) * float(_START_GRID)
    grid = torch.arange(SIZE, dtype=torch.float32)
    frames = _backdrop(scene, num_frames, generator)
    for thing in scene.things:
        centre = _path(scene.motion, start, num_frames)
        start = _beside(scene.motion, start, generator)  # where the other shape starts
        # The frame is a torus: a shape leaving on one side comes in on the other.
        dx = (grid[None, :] - centre[:, :1] + SIZE / 2) % SIZE - SIZE / 2
        dy = (grid[None, :] - centre[:, 1:] + SIZE / 2) % SIZE - SIZE / 2
        coverage = (depth_inside(thing.shape, dx[:, None, :], dy[:, :, None]) + 0.5).clamp(0, 1)[:, None]
        colour = torch.tensor(COLOURS[thing.colour], dtype=torch.float32)[None, :, None, None]
        frames = coverage * colour + (1 - coverage) * frames
    return frames.round().to(torch.uint8)


def _backdrop(scene: Scene, num_frames: int, generator: torch.Generator) -> Tensor:
    """The background, float32, broadcasting to [num_frames, 3, 64, 64]."""
    background = torch.tensor(BACKGROUNDS[scene.background], dtype=torch.float32)[None, :, None, None]
    if not scene.striped:
        return background
    stripe = torch.tensor(STRIPES[scene.background], dtype=torch.float32)[None, :, None, None]
    phase = torch.randint(0, 2, (1,), generator=generator) * float(STRIPE_WIDTH)
    moved = phase + torch.arange(num_frames, dtype=torch.float32) * CAMERAS[scene.camera]
    place = (torch.arange(SIZE, dtype=torch.float32)[None] - moved[:, None]) / STRIPE_WIDTH
    return torch.where((place.floor() % 2 == 0)[:, None, None, :], background, stripe)


def _beside(motion: str, start: Tensor, generator: torch.Generator) -> Tensor:
    """A start for another shape, in a lane of its own half a frame away, and along it anywhere."""
    along = torch.randint(0, SIZE // _START_GRID, (), generator=generator) * float(_START_GRID)
    upright = motion == "bouncing" or VELOCITIES.get(motion, (1, 0))[0] == 0
    lane = (start[0 if upright else 1] + SIZE / 2) % SIZE
    return torch.stack([lane, along] if upright else [along, lane])


def _path(motion: str, start: Tensor, num_frames: int) -> Tensor:
    """Centre of the shape in every frame, float32 [num_frames, 2] (x, y) in pixels; start: float32 [2]."""
    time = torch.arange(num_frames, dtype=torch.float32)[:, None]
    if motion == "staying still":
        return start.expand(num_frames, 2)
    if motion == "bouncing":
        span = SIZE - 2 * WALL
        phase = (start[1] * (2 * span / SIZE) + time * SPEED) % (2 * span)
        height = WALL + span - (phase - span).abs()
        return torch.cat([start[0].expand(num_frames, 1), height], dim=1)
    return start + time * torch.tensor(VELOCITIES[motion], dtype=torch.float32)


def depth_inside(shape: str, dx: Tensor, dy: Tensor) -> Tensor:
    """Signed distance in pixels to the shape's edge, positive inside; dx and dy broadcast to [F, H, W]."""
    if shape == "circle":
        return _CIRCLE_RADIUS - torch.hypot(dx, dy)
    if shape == "square":
        return _SQUARE_HALF_SIDE - torch.maximum(dx.abs(), dy.abs())
    slanted = dx.abs() * math.cos(math.pi / 6) - dy * math.sin(math.pi / 6)
    return _TRIANGLE_INRADIUS - torch.maximum(slanted, dy.expand(slanted.shape))
