"""The caption check against the exact clips it is meant for, what a small autoencoder does to them, and wrong clips."""

import dataclasses
import random
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from eval.caption_score import ATTRIBUTES, CaptionScore, per_chunk, score
from eval.clips import Clip
from eval.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLAIN_MOTIONS,
    SHAPES,
    SPEED,
    Scene,
    depth_inside,
    held_out_scenes,
    plain_scenes,
    training_scenes,
)
from tests.eval.caption_clips import all_right, blurred, clip

SCENE = Scene("red", "circle", "moving right", "dark")
STILL = Scene("blue", "square", "staying still", "light")
BOUNCING = Scene("green", "triangle", "bouncing", "grey")
NOTHING_SEEN = (None, None, None)
PLAIN_FIELDS = ("colour", "shape", "motion", "background")


def drawn(scene: Scene, scale: float = 1.0, centre: tuple[float, float] = (32.3, 32.3)) -> Clip:
    """One frame of a scene, uint8 [64, 64, 3]: its shape at (x, y), in the data's size times scale."""
    x, y = (torch.arange(64, dtype=torch.float32)[None] - middle for middle in centre)
    inside = scale * depth_inside(scene.shape, x[:, None, :] / scale, y[:, :, None] / scale)
    coverage = (inside[0, :, :, None] + 0.5).clamp(0, 1)
    ink, paper = torch.tensor(COLOURS[scene.colour]), torch.tensor(BACKGROUNDS[scene.background])
    return (coverage * ink + (1 - coverage) * paper).round().to(torch.uint8).numpy()


def lasting(frame: Clip, num_frames: int = 48) -> Clip:
    return np.repeat(frame[None], num_frames, axis=0)


def walked(scene: Scene, path: np.ndarray) -> Clip:
    """A shape carried along a path of whole pixels, int [F, 2] (x, y), from the middle of the frame."""
    frame = drawn(scene)
    return np.stack([np.roll(frame, (int(y), int(x)), axis=(0, 1)) for x, y in path])


def softened(frames: Clip) -> Clip:
    """The shape's edge spread over several pixels, as if its signed distance were rendered with a wide ramp."""
    return blurred(frames, 1.6)


def seen(result: CaptionScore) -> tuple[str | None, ...]:
    return result.colour, result.shape, result.motion


@pytest.fixture(scope="module")
def held_out() -> list[tuple[Scene, Clip]]:
    return [(scene, clip(scene, 192, seed)) for seed, scene in enumerate(held_out_scenes())]


def test_every_held_out_clip_is_right_and_seamless(held_out: list[tuple[Scene, Clip]]) -> None:
    covered = [{getattr(scene, field) for scene, _ in held_out} for field in PLAIN_FIELDS]
    assert covered == [set(COLOURS), set(SHAPES), set(PLAIN_MOTIONS), set(BACKGROUNDS)]
    for scene, frames in held_out:
        result = score(frames, scene.caption)
        found = Scene(result.colour, result.shape, result.motion, result.background)
        assert found == scene
        assert all_right(result), scene
        assert result.speed_pixels == (None if scene.motion == "staying still" else pytest.approx(SPEED, rel=0.05)), (
            scene
        )
        assert result.position_jump_pixels < 1.5, scene
        assert result.seam_ratio < 1.1, scene


@settings(max_examples=60, deadline=None)
@given(
    scene=st.sampled_from([*plain_scenes(), *islice(training_scenes(random.Random(1)), 400)]),
    seed=st.integers(0, 2**31),
    num_frames=st.integers(24, 150),
)
def test_any_clip_of_the_grammar_is_right_as_a_whole_and_chunk_by_chunk(
    scene: Scene, seed: int, num_frames: int
) -> None:
    frames = clip(scene, num_frames, seed)
    assert all_right(score(frames, scene.caption))
    assert all(all_right(part) for part in per_chunk(frames, scene.caption))


@pytest.mark.parametrize("degrade", [lambda frames: blurred(frames, 0.8), softened], ids=["blurred", "softened"])
def test_nearly_every_degraded_clip_is_right(
    held_out: list[tuple[Scene, Clip]], degrade: Callable[[Clip], Clip]
) -> None:
    scores = [score(degrade(frames[:96]), scene.caption) for scene, frames in held_out]
    assert np.mean([all_right(result) for result in scores]) >= 0.98
    assert max(result.position_jump_pixels for result in scores) < 1.5


@pytest.mark.parametrize(
    ("scene", "attribute"),
    [(scene, field) for scene in (SCENE, BOUNCING, STILL) for field in PLAIN_FIELDS],
    ids=lambda value: getattr(value, "motion", value),
)
def test_a_wrong_caption_is_wrong_in_that_attribute_alone(scene: Scene, attribute: str) -> None:
    frames = clip(scene)
    others = [
        other
        for other in plain_scenes()
        if getattr(other, attribute) != getattr(scene, attribute)
        and all(getattr(other, field) == getattr(scene, field) for field in PLAIN_FIELDS if field != attribute)
    ]
    assert others
    for other in others:
        result = score(frames, other.caption)
        wrong = {one for one in ATTRIBUTES if not getattr(result, one)}
        expected = {f"{attribute}_right"}
        assert wrong == expected | ({"right"} if attribute in ("colour", "shape", "motion") else set()), other


@pytest.mark.parametrize(
    "change",
    [{"colour": "yellow"}, {"shape": "triangle"}, {"motion": "moving left"}, {"background": "grey"}],
    ids=lambda change: next(iter(change)),
)
def test_a_clip_that_changes_half_way_is_wrong_from_there_on(change: dict[str, str]) -> None:
    attribute = next(iter(change))
    other = dataclasses.replace(SCENE, **change)
    frames = np.concatenate([clip(SCENE, 96)[:48], clip(other, 96)[48:]])
    whole = score(frames, SCENE.caption)
    assert getattr(whole, attribute) is None
    assert not getattr(whole, f"{attribute}_right")
    parts = per_chunk(frames, SCENE.caption)
    assert [getattr(part, f"{attribute}_right") for part in parts] == [True, True, False, False]
    assert [getattr(part, attribute) for part in parts[2:]] == [change[attribute]] * 2


def test_one_frozen_chunk_of_eight_is_not_a_steady_motion() -> None:
    frames = clip(SCENE, 192)
    frames[72:96] = frames[72]
    assert not score(frames, SCENE.caption).motion_right
    assert [part.motion for part in per_chunk(frames, SCENE.caption)].count("staying still") == 1


SQUARE = lasting(drawn(STILL))
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((48, 64, 64, 3), np.uint8),
        np.full((48, 64, 64, 3), 255, np.uint8),
        np.full((48, 64, 64, 3), COLOURS["blue"], np.uint8),
        NOISE,
        gaussian_filter(NOISE.astype(np.float32), (0, 4, 4, 0), mode="wrap").clip(0, 255).astype(np.uint8),
        np.minimum(SQUARE, np.roll(SQUARE, 30, axis=2)),
        np.minimum(SQUARE, np.roll(SQUARE, (16, 16), axis=(1, 2))),
        np.where(np.arange(64)[:, None, None] % 8 < 4, SQUARE, np.uint8(BACKGROUNDS["light"])),
        SQUARE.repeat(2, axis=2)[:, :, 32:96],
        lasting(np.minimum(drawn(STILL), np.roll(drawn(STILL, scale=0.8), (32, 32), axis=(0, 1)))),
    ],
    ids=[
        "black",
        "white",
        "one colour",
        "noise",
        "smooth noise",
        "two apart",
        "two touching",
        "striped",
        "stretched",
        "a smaller one far away",
    ],
)
@pytest.mark.parametrize("scene", [STILL, SCENE], ids=["still", "moving"])
def test_a_clip_without_one_clear_shape_is_wrong(frames: Clip, scene: Scene) -> None:
    result = score(frames, scene.caption)
    assert seen(result) == NOTHING_SEEN
    assert not any(getattr(result, one) for one in ATTRIBUTES if one not in ("background_right", "camera_right"))
    assert result.position_jump_pixels is None
    assert np.isfinite(result.seam_ratio)
    assert not any(part.right for part in per_chunk(frames, scene.caption))


@pytest.mark.parametrize(("missing", "right"), [(9, True), (10, False)])
def test_the_shape_may_miss_from_a_tenth_of_the_frames(missing: int, right: bool) -> None:
    frames = clip(SCENE, 96)
    frames[np.linspace(3, 90, missing).astype(int)] = BACKGROUNDS["dark"]
    result = score(frames, SCENE.caption)
    assert all_right(result) == right
    assert (seen(result) == NOTHING_SEEN) != right


def test_a_frozen_clip_moves_nowhere_whatever_its_caption_says() -> None:
    for motion in PLAIN_MOTIONS[:-1]:
        scene = Scene("cyan", "square", motion, "dark")
        result = score(lasting(drawn(scene)), scene.caption)
        assert (result.motion, result.speed_pixels, result.motion_right) == ("staying still", None, False)
        assert not result.right
        assert (result.seam_ratio, result.position_jump_pixels) == (1.0, 0.0)


@pytest.mark.parametrize(("speed", "motion"), [(0.25, "staying still"), (0.5, "moving right"), (4.0, "racing right")])
def test_slower_than_0_3_pixels_a_frame_is_staying_still_and_faster_than_3_racing(speed: float, motion: str) -> None:
    frames = np.stack([drawn(SCENE, centre=(24 + speed * t % 16, 30)) for t in range(24)])
    result = score(frames[: int(16 / speed)], SCENE.caption)
    assert result.motion == motion
    assert result.speed_pixels == (None if speed < 0.3 else pytest.approx(speed, rel=0.1))


@pytest.mark.parametrize("speed", [SPEED / 2, SPEED])
def test_a_short_bounce_is_read_wherever_the_wall_is(speed: float) -> None:
    scene = Scene("red", "circle", "bouncing", "dark")
    way = speed * np.arange(24)
    for turn in np.arange(6, 18, 0.5):
        height = 48 - np.abs(np.abs(way - turn * speed) % 64 - 32)
        path = np.stack([np.full(24, 20.0), height], axis=1)
        result = score(np.stack([drawn(scene, centre=(x, y)) for x, y in path]), scene.caption)
        assert all_right(result), turn


def test_a_motion_outside_the_grammar_is_none_of_it() -> None:
    time_steps = np.arange(96)
    random = np.random.default_rng(1)
    paths = {
        "diagonal through the frame's edges": np.stack([time_steps, time_steps], axis=1),
        "steep diagonal": np.stack([time_steps * 3 // 4, time_steps], axis=1),
        "bouncing sideways": np.stack([np.abs(time_steps % 36 - 18) * 2, 0 * time_steps], axis=1),
        "bouncing off all four walls": np.abs(time_steps[:, None] * 2 % 64 - [32, 24]) - 16,
        "bouncing through the frame's edges": np.stack([0 * time_steps, np.abs(time_steps * 2 % 112 - 56)], axis=1),
        "trembling": random.integers(-3, 4, (96, 2)),
        "wandering": random.choice([-1, 1], (96, 2)).cumsum(axis=0),
        "somewhere else in every frame": random.integers(0, 64, (96, 2)),
    }
    for name, path in paths.items():
        result = score(walked(SCENE, path), SCENE.caption)
        assert (result.colour, result.shape, result.motion, result.speed_pixels) == ("red", "circle", None, None), name
        assert not any((result.motion_right, result.right)), name


@pytest.mark.parametrize("rgb", [(255, 255, 255), (0, 0, 0), (236, 234, 228), (255, 0, 255), (128, 70, 20)])
def test_a_colour_outside_the_palette_is_none_of_it(rgb: tuple[int, int, int]) -> None:
    frames = clip(dataclasses.replace(SCENE, background="grey"))
    ink = np.all(np.abs(frames.astype(int) - COLOURS["red"]) < 3, axis=-1)
    frames[ink] = rgb
    result = score(frames, SCENE.caption)
    assert result.colour is None
    assert not result.colour_right


def test_a_shape_of_two_colours_has_none() -> None:
    """Half red, half blue would pass for purple if its colours were averaged."""
    red, blue = (lasting(drawn(dataclasses.replace(STILL, colour=colour))) for colour in ("red", "blue"))
    frames = np.where(np.arange(64)[:, None, None] < 32, red, blue)
    result = score(frames, STILL.caption)
    assert (result.colour, result.shape, result.motion) == (None, "square", "staying still")


@pytest.mark.parametrize("scale", [0.85, 1.15])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_a_little_too_small_or_large_keeps_its_name(shape: str, scale: float) -> None:
    scene = dataclasses.replace(STILL, shape=shape)
    assert all_right(score(lasting(drawn(scene, scale)), scene.caption))


@pytest.mark.parametrize("scene", [SCENE, STILL, BOUNCING], ids=lambda scene: scene.motion)
@pytest.mark.parametrize("jump", [(6, 0), (-6, 0), (0, 6), (4, -4)])
def test_a_jump_at_a_chunk_border_shows_in_the_seam_figures_alone(scene: Scene, jump: tuple[int, int]) -> None:
    clean = clip(scene, 96, seed=5)
    frames = np.concatenate([clean[:48], np.roll(clean[48:], jump[::-1], axis=(1, 2))])
    before, after = score(clean, scene.caption), score(frames, scene.caption)
    assert before.position_jump_pixels < 1.5
    assert after.position_jump_pixels > 1.5
    # A bouncing shape may be carried beyond the walls, and a jump may turn a step into its exact opposite.
    if scene is not BOUNCING:
        assert after.position_jump_pixels == pytest.approx(np.hypot(*jump), abs=1)
        assert after.seam_ratio > 1.15 * before.seam_ratio  # one of three borders; the ratio is their mean
        assert all_right(after)
    elsewhere = np.concatenate([clean[:54], np.roll(clean[54:], jump[::-1], axis=(1, 2))])
    assert score(elsewhere, scene.caption).position_jump_pixels < 1.5


def test_jumps_at_every_chunk_border_leave_the_motion_inside_the_chunks_as_it_is() -> None:
    frames = walked(STILL, np.arange(192)[:, None] // 24 * [6, 0])
    result = score(frames, STILL.caption)
    assert all_right(result)
    assert result.position_jump_pixels == pytest.approx(6, abs=1e-6)
    assert not score(frames, STILL.caption, chunk_frames=20).motion_right


def test_a_flash_at_every_border_is_a_seam_of_its_size() -> None:
    """Grey levels alternate by 2 from frame to frame and by 10 into a chunk: 10 / 2."""
    frames = np.zeros((96, 64, 64, 3), np.uint8)
    steps = np.where(np.arange(1, 96) % 24 == 0, 10, np.where(np.arange(1, 96) % 2 == 0, 2, -2))
    frames[:] = (50 + np.concatenate([[0], steps.cumsum()]))[:, None, None, None]
    assert score(frames, SCENE.caption).seam_ratio == pytest.approx(5.0)
    assert score(frames, SCENE.caption, chunk_frames=96).seam_ratio is None


def test_chunks_have_no_seam_figures_and_a_short_tail_goes_with_its_neighbour() -> None:
    lengths = {96: 4, 97: 4, 107: 4, 108: 5, 24: 1, 12: 1, 2: 1}
    for num_frames, chunks in lengths.items():
        parts = per_chunk(clip(SCENE, num_frames), SCENE.caption)
        assert len(parts) == chunks
        assert all((part.seam_ratio, part.position_jump_pixels) == (None, None) for part in parts)
        assert all(all_right(part) for part in parts) == (num_frames > 3)
    assert len(per_chunk(clip(SCENE, 96), SCENE.caption, chunk_frames=20)) == 5
    jump_in_tail = np.concatenate([clip(SCENE, 24), clip(STILL, 6)])
    assert [part.right for part in per_chunk(jump_in_tail, SCENE.caption)] == [False]


def test_a_first_chunk_may_be_shorter() -> None:
    """SkyReels-V2's chunks: 17 frames, then 20 each. A jump of 6 pixels at every border but none inside."""
    chunk = (np.arange(177) + 3) // 20
    frames = walked(STILL, chunk[:, None] * [6, 0])
    result = score(frames, STILL.caption, chunk_frames=20, first_chunk_frames=17)
    assert all_right(result)
    assert result.position_jump_pixels == pytest.approx(6, abs=1e-6)
    assert not score(frames, STILL.caption, chunk_frames=20).motion_right
    parts = per_chunk(frames, STILL.caption, chunk_frames=20, first_chunk_frames=17)
    assert len(parts) == 9
    assert all(all_right(part) for part in parts)
    assert score(clip(SCENE, 17), SCENE.caption, 20, 17).seam_ratio is None


@pytest.mark.parametrize("check", [score, per_chunk])
def test_bad_input_is_refused(check: Callable[..., object]) -> None:
    frames = clip(SCENE, 8)
    with pytest.raises(ValueError, match="outside the grammar"):
        check(frames, "a red circle")
    with pytest.raises(ValueError, match="64x64"):
        check(frames[:, :32], SCENE.caption)
    with pytest.raises(ValueError, match=r"\[F, H, W, 3\]"):
        check(frames.transpose(0, 3, 1, 2), SCENE.caption)
    with pytest.raises(TypeError, match="uint8"):
        check(frames.astype(np.float32), SCENE.caption)
    with pytest.raises(ValueError, match="chunk_frames"):
        check(frames, SCENE.caption, chunk_frames=3)
    for first in (0, 25):
        with pytest.raises(ValueError, match="first_chunk_frames must be 1 to chunk_frames=24"):
            check(frames, SCENE.caption, first_chunk_frames=first)
