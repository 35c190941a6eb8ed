"""The data and the optimiser behind the embedded weights."""

import json
import random
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

from eval.scenes import (
    BACKGROUNDS,
    NUM_HELD_OUT,
    SIZE,
    SPEED,
    WALL,
    Scene,
    depth_inside,
    held_out_rich_scenes,
    held_out_scenes,
    plain_scenes,
    plain_training_scenes,
    render,
    scene_of,
    striped_scenes,
    training_scenes,
    two_shape_scenes,
)
from experiments.job.paths import ROOT
from experiments.training.captions import build_tokenizer
from experiments.training.clips import draw_weights
from experiments.training.magi_dit import Batches
from experiments.training.optimiser import Optimiser, orthogonalise
from experiments.training.train_embedded import main
from flowcache.models.magi import Magi
from flowcache.schedule import timesteps

EMBEDDED = ROOT / "experiments" / "embedded" / "magi"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_held_out_and_training_scenes_part_all_scenes():
    held_out, training = held_out_scenes(), plain_training_scenes()
    assert len(held_out) == NUM_HELD_OUT == 64
    assert not set(held_out) & set(training)
    assert set(held_out) | set(training) == set(plain_scenes())
    assert len(plain_scenes()) == 6 * 3 * 6 * 3


def test_default_prompts_are_the_held_out_captions():
    prompts = (ROOT / "experiments" / "prompts" / "embedded.txt").read_text(encoding="utf-8").splitlines()
    assert prompts == [scene.caption for scene in held_out_scenes()]
    first = [scene_of(prompt) for prompt in prompts[:8]]
    assert {s.shape for s in first} == {"circle", "square", "triangle"}
    assert len({s.motion for s in first}) >= 5


def rich_scenes(number: int) -> list[Scene]:
    return [*held_out_rich_scenes(), *islice(training_scenes(random.Random(0)), number)]


def look(scene: Scene) -> tuple[object, ...]:
    return frozenset(scene.things), scene.motion, scene.background, scene.camera, scene.striped


def test_no_scene_of_the_held_out_halves_is_trained_on_in_any_order():
    held_out = held_out_rich_scenes()
    assert len(held_out) == len(set(held_out)) == NUM_HELD_OUT
    looks = {look(scene) for scene in held_out}
    trained, plain = list(islice(training_scenes(random.Random(0)), 20000)), set(plain_training_scenes())
    assert not looks & {look(scene) for scene in trained}
    assert not set(held_out_scenes()) & set(trained)
    shares = [
        sum(scene.striped for scene in trained),
        sum(scene.second is not None for scene in trained),
        sum(scene in plain for scene in trained),
    ]
    assert [share / len(trained) for share in shares] == pytest.approx([0.25, 0.25, 0.4], abs=0.02)


def test_rich_prompts_are_the_held_out_rich_captions():
    prompts = (ROOT / "experiments" / "prompts" / "embedded_rich.txt").read_text(encoding="utf-8").splitlines()
    assert prompts == [scene.caption for scene in held_out_rich_scenes()]


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle moving left on a dark background panning left",  # nothing there that could be seen to move
        "a red circle and a red square moving right on a dark background",
        "a red circle moving left and a blue square moving up on a dark background",
        "a red circle and a blue square moving left on a striped dark background",
        "a red circle and a blue square and a green square moving left on a dark background",
        "a red circle on a dark background",
        "a red circle moving left on a striped dark background panning up",
    ],
)
def test_a_caption_outside_the_grammar_is_refused(caption):
    with pytest.raises(ValueError, match="outside the grammar"):
        scene_of(caption)


@given(st.sampled_from([*plain_scenes(), *rich_scenes(300)]))
def test_captions_read_back_as_their_scenes(scene):
    assert scene_of(scene.caption.upper()) == scene


def test_a_moving_shape_moves_by_its_speed_around_the_torus():
    clip = render(Scene("red", "circle", "moving right", "dark"), 65, generator())
    shift = int(SPEED)
    assert torch.equal(clip[1], clip[0].roll(shift, dims=-1))
    assert torch.equal(clip[SIZE // shift], clip[0])
    still = render(Scene("red", "square", "staying still", "light"), 5, generator(1))
    assert (still == still[0]).all()


def test_a_racing_shape_moves_at_twice_the_speed():
    clip = render(Scene("red", "circle", "racing up", "dark"), 5, generator())
    assert torch.equal(clip[4], clip[0].roll(-16, dims=-2))


@pytest.mark.parametrize(("camera", "shift"), [("", 0), ("panning left", -2), ("panning right", 2)])
def test_stripes_move_with_the_camera_and_the_shape_does_not(camera, shift):
    scene = Scene("red", "circle", "staying still", "grey", striped=True, camera=camera)
    clip = render(scene, 6, generator())
    background = render(replace(scene, colour="blue"), 6, generator()) == clip  # wherever no shape is
    for frame in range(1, 6):
        both = background[frame].all(0) & background[0].all(0).roll(frame * shift, dims=-1)
        assert torch.equal(clip[frame][:, both], clip[0].roll(frame * shift, dims=-1)[:, both])
    assert torch.equal(background, background[:1].expand_as(background))


@given(st.sampled_from(two_shape_scenes()), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_two_shapes_never_meet(scene, seed):
    """Each covers as much as it does alone."""
    frames = render(scene, 65, generator(seed))
    paper = torch.tensor(BACKGROUNDS[scene.background], dtype=torch.uint8)[:, None, None]
    areas = [
        depth_inside(thing.shape, *torch.meshgrid(torch.arange(-32.0, 32), torch.arange(-32.0, 32), indexing="xy"))
        for thing in scene.things
    ]
    alone = sum((area > -0.5).sum().item() for area in areas)
    assert ((frames != paper).any(1).sum((1, 2)) >= 0.97 * alone).all()


def test_a_bouncing_shape_goes_up_and_down_between_the_walls():
    clip = render(Scene("blue", "square", "bouncing", "grey"), 100, generator(2))
    border = torch.cat([clip[:, :, 0], clip[:, :, -1]], dim=-1)
    assert (border == border[0, :, :1]).all()  # background above and below, always
    half_period = int((SIZE - 2 * WALL) / SPEED)
    assert torch.equal(clip[2 * half_period], clip[0])
    assert not torch.equal(clip[half_period], clip[0])
    columns = (clip != border[0, :, :1, None]).any(dim=1).any(dim=-2)
    assert (columns == columns[0]).all()


def test_every_word_of_the_grammar_is_one_token():
    tokenizer = build_tokenizer()
    for scene in [*plain_scenes()[::37], *rich_scenes(100)]:
        ids = tokenizer(scene.caption)["input_ids"]
        assert len(ids) == len(scene.caption.split()) + 1
        assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("model", ["skyreels", "wan"])
def test_the_longest_caption_fits(model):
    recipe = OmegaConf.load(ROOT / "conf" / "training" / f"{model}.yaml").dit.recipe
    longest = max(len(scene.caption.split()) for scene in [*striped_scenes(), *two_shape_scenes()])
    assert longest + 1 <= recipe.caption_length  # with the end token


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1000))
def test_orthogonalise_brings_singular_values_near_one(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=generator(seed))
    # Newton-Schulz with these coefficients settles in about [0.7, 1.2]; tiny ones take more rounds.
    values = torch.linalg.svdvals(matrix)
    before = values / values.norm()
    after = torch.linalg.svdvals(orthogonalise(matrix))
    assert after.max() < 1.3
    assert (after[before > 0.05] > 0.3).all()


def test_optimiser_learns_and_resumes_exactly():
    def fresh():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        return model, Optimiser(model, ("0.",), 1e-2, 1e-2, num_steps=60, warmup_steps=5)

    x, y = torch.randn(64, 8, generator=generator(3)), torch.randn(64, 4, generator=generator(4))

    def loss(model):
        return (model(x) - y).square().mean()

    model, optimiser = fresh()
    first = loss(model).item()
    for _ in range(30):
        optimiser.step(loss(model))
    saved = {"model": {k: v.clone() for k, v in model.state_dict().items()}, "optimiser": optimiser.state_dict()}
    saved["optimiser"] = torch.utils._pytree.tree_map(
        lambda v: v.clone() if isinstance(v, torch.Tensor) else v, saved["optimiser"]
    )
    for _ in range(10):
        optimiser.step(loss(model))
    assert loss(model).item() < 0.8 * first

    other, resumed = fresh()
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimiser"])
    for _ in range(10):
        resumed.step(loss(other))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_warms_up_and_ends_at_zero():
    optimiser = Optimiser(nn.Linear(2, 2), (), 1.0, 1.0, num_steps=100, warmup_steps=10, decay_fraction=0.5)
    factors = []
    for step in range(101):
        optimiser.step_count = step
        factors.append(optimiser.lr_factor())
    assert factors[0] == 0.1
    assert max(factors) == 1.0
    assert factors[75] == 0.5
    assert factors[100] == 0.0


TINY = """
num_processes=1 vae.recipe.phases=[{"num_steps":2,"num_frames":12,"clips_per_process":1}]
vae.config.embed_dim=64 vae.config.depth=1
dit.recipe.num_steps=2 dit.recipe.num_clips=2 dit.recipe.batch_independent=1 dit.recipe.batch_staggered=1
dit.config.num_layers=1 dit.config.hidden_size=64 dit.config.num_attention_heads=2 dit.config.kv_channels=32
dit.config.ffn_hidden_size=64 decoder.recipe.num_steps=1 decoder.recipe.clips_per_process=1
dit.recipe.num_steps_of_schedule=[64,16]
"""


@pytest.mark.slow
def test_every_stage_runs_and_the_export_loads(tmp_path):
    arguments = ["model=magi", f"directory={tmp_path / 'run'}", f"destination={tmp_path / 'weights'}", *TINY.split()]
    assert main(arguments) == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "dit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert logged[-1]["step"] == 2
    model = Magi.from_pretrained(tmp_path / "weights")
    assert model.config.runtime.trained_num_steps == (64, 16)
    trained = torch.load(tmp_path / "run" / "dit.pt", weights_only=True)["model"]
    assert torch.equal(model.dit.final_linear.linear.weight, trained["dit.final_linear.linear.weight"].half().float())
    assert model.config.runtime.scale_factor == json.loads(
        (tmp_path / "run" / "scale_factor.json").read_text(encoding="utf-8")
    )

    # Finished stages are not run again.
    before = (tmp_path / "run" / "dit.pt").read_bytes()
    assert main(arguments) == 0
    assert (tmp_path / "run" / "dit.pt").read_bytes() == before


def test_training_goes_on_from_a_checkpoint_with_its_autoencoder_and_words(tmp_path):
    """After no step at all the new checkpoint is the old one."""
    run = f"directory={tmp_path / 'run'}", f"destination={tmp_path / 'weights'}", f"initial={EMBEDDED}"
    steps = ["dit.recipe.num_steps=0", "dit.recipe.num_clips=2", "dit.recipe.num_chunks=1", "num_processes=1"]
    assert main(["model=magi", *run, *steps, "dit.recipe.seed=7"]) == 0
    vae, dit = "vae/diffusion_pytorch_model.safetensors", "inference_weight.distill/model.safetensors"
    for name in (vae, dit, "special_tokens.safetensors"):
        before, after = load_file(EMBEDDED / name), load_file(tmp_path / "weights" / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    rows = []
    for t5 in (EMBEDDED / "t5", tmp_path / "weights" / "t5"):
        words = AutoTokenizer.from_pretrained(t5)("a red circle moving left on a dark background").input_ids
        rows.append(load_file(t5 / "model.safetensors")["shared.weight"][words])
    assert torch.equal(*rows)


@pytest.mark.parametrize("count", [64, 8])
def test_chunks_stand_as_in_a_generation_of_so_many_steps(count):
    recipe = {"num_steps_of_schedule": [64, 8], "batch_staggered": 3, "num_chunks": 8, "opening_share": 0.5}
    recipe |= {"clean_t": 0.9999, "motion_weights": {}, "plain_weight": 1.0}
    session = SimpleNamespace(generator=generator(), choice=random.Random(0))
    scenes = plain_training_scenes()[:2]
    batches = Batches(torch.zeros(2, 1, 48, 1, 1), scenes, None, None, recipe, session)
    table = timesteps(count)
    for _ in range(20):
        _, _, times, num_clean = batches.staggered(count)
        assert (times[:, :num_clean] == recipe["clean_t"]).all()
        # Where in the schedule each chunk in the window stands, in steps.
        after = torch.searchsorted(table, times[:, num_clean:].contiguous(), right=True).clamp(1, count)
        before = table[after - 1]
        places = after - 1 + (times[:, num_clean:] - before) / (table[after] - before)
        assert torch.allclose(places.diff(dim=1), torch.tensor(-count / 4), atol=1e-3)


def test_guidance_is_distilled_from_the_checkpoint_that_training_goes_on_from(tmp_path):
    """Before the first update student and teacher are one: without a caption there is nothing to guide away from."""

    def first_loss(name, *options):
        run = [f"directory={tmp_path / name}", f"destination={tmp_path / 'weights'}", f"initial={EMBEDDED}"]
        small = ["num_steps=1", "num_clips=2", "num_chunks=1", "chunks_independent=1", "guidance_until=2", *options]
        assert main(["model=magi", *run, "num_processes=1", *(f"dit.recipe.{option}" for option in small)]) == 0
        average = json.loads((tmp_path / name / "dit.jsonl").read_text(encoding="utf-8"))["loss_independent"]
        return (average - 0.96) / 0.04  # a running mean that began at 1

    assert first_loss("same", "guidance=4", "caption_dropout=1") == pytest.approx(0, abs=1e-3)
    assert first_loss("guided", "guidance=4", "caption_dropout=0") > 0.01


def test_guidance_without_a_checkpoint_to_distil_is_refused(capsys):
    assert main(["model=magi", "dit.recipe.guidance=4"]) == 2
    assert "initial=<checkpoint directory>" in capsys.readouterr().err


def test_clips_are_drawn_by_their_motion_and_their_half_of_the_grammar():
    captions = ["a red circle {} on a dark background", "a red circle {} on a striped dark background"]
    scenes = [scene_of(caption.format(motion)) for caption in captions for motion in ("bouncing", "moving up")]
    scenes.append(scene_of("a red circle racing up on a dark background"))
    recipe = {"motion_weights": {"bouncing": 2.0}, "plain_weight": 3.0}
    assert draw_weights(scenes, recipe) == [6.0, 3.0, 2.0, 1.0, 1.0]
