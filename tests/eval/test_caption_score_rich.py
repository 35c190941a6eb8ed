"""The caption check on the rich half of the grammar: stripes, a camera that pans, and two shapes."""

import dataclasses

import numpy as np
import pytest

from eval.caption_score import ATTRIBUTES, score
from eval.scenes import CAMERAS, COLOURS, STRIPE_WIDTH, Scene, Thing, held_out_rich_scenes
from tests.eval.caption_clips import all_right, blurred, clip

STRIPED = Scene("blue", "square", "moving up", "grey", striped=True, camera="panning left")
PAIR = Scene("red", "circle", "moving left", "light", second=Thing("cyan", "square"))


def test_every_held_out_rich_clip_is_right_and_seamless() -> None:
    for seed, scene in enumerate(held_out_rich_scenes()):
        result = score(clip(scene, 96, seed), scene.caption)
        assert all_right(result), scene
        assert result.camera == scene.camera
        assert result.colour == " and ".join(thing.colour for thing in scene.things)
        assert result.position_jump_pixels < 1.5, scene
        assert result.seam_ratio < 1.4, scene  # a pattern that pans differs more where stripes meet the shape


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a blue square moving up on a striped grey background panning left", set()),
        ("a blue square moving up on a striped grey background panning right", {"camera_right", "right"}),
        ("a blue square moving up on a striped grey background", {"camera_right", "right"}),
        ("a blue square moving up on a striped dark background panning left", {"background_right", "right"}),
        ("a blue square racing up on a striped grey background panning left", {"motion_right", "right"}),
    ],
)
def test_stripes_and_their_camera_are_seen(caption: str, wrong: set[str]) -> None:
    result = score(clip(STRIPED), caption)
    assert {one for one in ATTRIBUTES if not getattr(result, one)} == wrong


def test_stripes_are_wrong_where_there_should_be_none_and_missed_where_there_should_be_some() -> None:
    assert not score(clip(STRIPED), "a blue square moving up on a grey background").right
    even = dataclasses.replace(STRIPED, striped=False, camera="")
    result = score(clip(even), STRIPED.caption)
    assert result.camera is None
    assert not result.right
    narrow = np.where(np.arange(64)[:, None] % STRIPE_WIDTH < STRIPE_WIDTH // 2, clip(even), clip(even) - np.uint8(30))
    assert score(narrow, dataclasses.replace(STRIPED, camera="").caption).camera is None


@pytest.mark.parametrize("camera", CAMERAS)
def test_blurred_stripes_are_right(camera: str) -> None:
    scene = dataclasses.replace(STRIPED, camera=camera)
    assert all_right(score(blurred(clip(scene), 0.8), scene.caption))


@pytest.mark.parametrize("change", [{"colour": "green"}, {"shape": "triangle"}], ids=lambda change: next(iter(change)))
@pytest.mark.parametrize("which", ["first", "second"])
def test_of_two_shapes_each_is_held_to_the_caption(change: dict[str, str], which: str) -> None:
    second = PAIR.second
    assert second is not None
    other = (
        dataclasses.replace(PAIR, **change)
        if which == "first"
        else dataclasses.replace(PAIR, second=dataclasses.replace(second, **change))
    )
    assert all_right(score(clip(PAIR), PAIR.caption))
    result = score(clip(PAIR), other.caption)
    assert not result.right
    assert not getattr(result, f"{next(iter(change))}_right")


def test_two_shapes_must_both_move_as_the_caption_says() -> None:
    """A clip of which one half of the height is another motion's: the lanes are half a frame apart."""
    alike = clip(PAIR)
    rows = np.any(alike != alike[:1], axis=(0, 2, 3))
    assert rows.any()
    assert not rows.all()
    for motion in ("racing left", "moving right"):
        other = dataclasses.replace(PAIR, motion=motion)
        assert not score(alike, other.caption).motion_right
        first_lane = np.isin(np.arange(64), _lane_rows(alike, "red"))[:, None, None]
        assert not score(np.where(first_lane, alike, clip(other)), PAIR.caption).motion_right


def _lane_rows(frames: np.ndarray, colour: str) -> np.ndarray:
    """The half of the frame's rows around the shape of a colour."""
    close = np.abs(frames[0].astype(int) - COLOURS[colour]).sum(axis=-1) < 60
    turn = np.exp(2j * np.pi * np.arange(64) / 64)
    middle = round(np.angle(close.sum(axis=1) @ turn) * 64 / (2 * np.pi))
    return (np.arange(middle - 16, middle + 16)) % 64


def test_one_shape_is_not_two_nor_two_one() -> None:
    alone = dataclasses.replace(PAIR, second=None)
    assert not score(clip(alone), PAIR.caption).right
    assert not score(clip(PAIR), alone.caption).right
