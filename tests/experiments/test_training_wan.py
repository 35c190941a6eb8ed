"""How the embedded causal Wan is trained: one pass over a clip is what a rollout on clean blocks sees."""

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import SkyReelsV2Transformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from eval.scenes import held_out_scenes
from experiments.training import precision
from experiments.training.captions import build_tokenizer
from experiments.training.export import link_shared_weights
from experiments.training.initial import start_skyreels, start_wan
from experiments.training.skyreels_dit import TextAndTransformer
from experiments.training.skyreels_vae import WanAutoencoder
from experiments.training.train_embedded import main
from experiments.training.wan_dit import Clips, TeacherForcing, TextAndWan
from experiments.training.wan_student import Student, Teacher, path_levels
from flowcache import generate
from flowcache.method import VANILLA
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan import Wan
from flowcache.models.wan.attention import Member, Pack

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "ffn_dim": 32,
    "text_dim": 16,
    "rope_max_seq_len": 64,
}
TEXT = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
RECIPE = {
    "clips_per_process": 2,
    "block_size": 2,
    "window": [2, 1],
    "furthest_sink": 4,
    "motion_weights": {},
    "plain_weight": 1.0,
    "caption_length": 16,
    "shift": 5.0,
    "history_noise": 0.0,
    "caption_dropout": 0.0,
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> TextAndWan:
    torch.manual_seed(0)
    model = TextAndWan(TRANSFORMER, TEXT)
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    return model


@pytest.mark.parametrize(("window", "sink", "seen"), [(None, 0, [0, 1]), (2, 0, [1]), (2, 1, [0])])
@torch.no_grad()
def test_a_noisy_block_sees_the_clean_ones_before_it_and_itself(model, window, sink, seen):
    """Block 2's output is that of a pass over what it sees alone; later blocks change nothing."""
    network, block, frames = model.network, 2, 8
    rope = network.rope_table(frames, 4, 4)
    clean, noisy, caption = draw(1, 16, 8, 4, 4), draw(1, 16, 8, 4, 4, seed=1), network.caption(draw(1, 5, 16))
    cache = TeacherForcing(4, window, sink)
    table = network.time_table(torch.tensor([0.0] * 8 + [700.0] * 8))
    x = network.embed(torch.cat([clean, noisy], dim=2))
    both = tuple(each.repeat(2, 1, 1, 1).flatten(0, 1) for each in rope)
    x = network.blocks(x, table.modulation, caption, Pack(cache.members(x.shape[1] * block), both, cache))
    found = x[frames + 4 : frames + 6]

    # Clean blocks see others than the noisy one does, so that their keys come from passes of their own.
    kept = TeacherForcing(4, window, sink)
    for position in range(3):
        own = slice(2 * position, 2 * position + 2)
        latent, place = (clean[:, :, own], position) if position < 2 else (noisy[:, :, own], 4 + position)
        time = network.time_table(torch.tensor([0.0 if position < 2 else 700.0] * 2))
        pack = Pack((Member(place, 8, 0, place),), tuple(each[own].flatten(0, 1) for each in rope), kept)
        x = network.blocks(network.embed(latent), time.modulation, caption, pack)
    assert kept._seen(4 + 2) == [*seen, 6]
    torch.testing.assert_close(x, found, atol=1e-5, rtol=0)


def test_the_loss_trains_every_part_through_window_and_sink(model):
    session = SimpleNamespace(generator=torch.Generator().manual_seed(1), choice=random.Random(1))
    clips = Clips(draw(4, 16, 6, 4, 4).half(), held_out_scenes()[:4], model, RECIPE, session)
    first, others = clips.losses()
    (first + others).backward()
    without = {name for name, each in model.named_parameters() if each.grad is None}
    assert without == set()


@pytest.mark.parametrize("faster", [True, False])
def test_mixed_precision_takes_bfloat16_for_products_alone(monkeypatch, faster):
    monkeypatch.setattr(precision, "bfloat16_is_faster", lambda: faster)
    query, key, value = draw(3, 1, 2, 5, 4).bfloat16()
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    with precision.mixed_precision():
        assert F.linear(draw(2, 3), draw(4, 3)).dtype == (torch.bfloat16 if faster else torch.float32)
        if faster:
            assert torch.equal(F.scaled_dot_product_attention(query, key, value), expected)
    assert F.linear(draw(2, 3), draw(4, 3)).dtype == torch.float32


def test_a_model_starts_as_one_of_the_other_family(tmp_path):
    """SkyReels-V2 at its usual frame rate, causal Wan that starts as it, and SkyReels-V2 that starts as that: one."""
    torch.manual_seed(0)
    vae = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    source = SkyReelsV2Transformer3DModel(**TRANSFORMER, inject_sample_info=True)
    times = torch.tensor([0.0, 500.0])
    expected = SkyReelsNetwork(source).time_table(times, fps=24).modulation
    recipes = {
        TextAndWan: {"transformer": TRANSFORMER, "text": TEXT},
        TextAndTransformer: {"transformer": TRANSFORMER | {"inject_sample_info": True}, "text": TEXT},
    }
    starts = [(start_wan, TextAndWan), (start_wan, TextAndWan), (start_skyreels, TextAndTransformer)]
    for number, (start, family) in enumerate(starts):
        folder, directory = tmp_path / f"from_{number}", tmp_path / f"to_{number}"
        source.save_pretrained(folder / "transformer")
        UMT5EncoderModel(UMT5Config(**TEXT)).save_pretrained(folder / "text_encoder")
        WanAutoencoder(**vae).vae.save_pretrained(folder / "vae")
        build_tokenizer().save_pretrained(folder / "tokenizer")
        directory.mkdir()
        start(folder, {"vae": {"config": vae, "train_on": True}, "dit": recipes[family]}, directory)
        model = family(**recipes[family])
        model.load_state_dict(torch.load(directory / "dit.pt", weights_only=True)["model"])
        for fps in (16, 24) if family is TextAndTransformer else (None,):
            given = {} if fps is None else {"fps": fps}
            found = model.network.time_table(times, **given).modulation
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            model.transformer.state_dict()["blocks.0.attn1.to_q.weight"], source.blocks[0].attn1.to_q.weight
        )
        source = model.transformer


STUDENT = RECIPE | {"steps": [1000, 750, 500, 250], "path_steps": 16, "guidance": 2.0, "seed": 0}
STUDENT |= {"openings_per_process": 2}


def test_a_path_passes_the_few_steps_and_ends_where_the_teacher_does(model):
    teacher = Teacher(model, STUDENT)
    clean, noise = draw(1, 16, 6, 4, 4), draw(1, 16, 6, 4, 4, seed=1)
    path = teacher.path(clean, "a red circle", noise)
    assert path.shape == (5, 16, 6, 4, 4)
    assert torch.equal(path[0], noise[0])
    assert torch.equal(teacher.levels[teacher.kept], torch.tensor([1.0, 0.9375, 0.8333333, 0.625]))
    # A network of constant velocity goes straight: from each state the end is as far as the level says.
    torch.nn.init.zeros_(model.transformer.proj_out.weight)
    torch.nn.init.constant_(model.transformer.proj_out.bias, 0.5)
    path = teacher.path(clean, "a red circle", noise)
    for state, level in zip(path[:-1], teacher.levels[teacher.kept], strict=True):
        torch.testing.assert_close(state - 0.5 * level, path[-1], atol=1e-5, rtol=0)


def test_the_student_learns_the_velocity_to_a_path_s_end(model):
    session = SimpleNamespace(generator=torch.Generator().manual_seed(1), choice=random.Random(1))
    latents, scenes = draw(2, 16, 6, 4, 4).half(), held_out_scenes()[:2]
    levels = path_levels(16, 5.0)[[0, 4, 8, 12]]
    end = draw(2, 16, 6, 4, 4, seed=2)
    paths = torch.stack([*(end + 0.5 * level for level in levels), end], dim=1)
    openings = paths[[0, 1, 0], :, :, : STUDENT["block_size"]]  # of the clips again and again
    student = Student(model, paths, openings, latents, scenes, STUDENT, session)
    torch.nn.init.zeros_(model.transformer.proj_out.weight)
    torch.nn.init.constant_(model.transformer.proj_out.bias, 0.5)
    for loss in student.losses():
        assert loss.item() == pytest.approx(0, abs=1e-9)


def test_every_stage_runs_and_both_exports_load_and_generate(tmp_path):
    run, student, teacher = tmp_path / "run", tmp_path / "student", tmp_path / "teacher"
    small = "num_processes=1 dit.recipe.num_clips=2 dit.recipe.num_frames=21 dit.recipe.num_steps=1 "
    small += "dit.recipe.furthest_sink=4 student.recipe.num_steps=1 student.recipe.num_paths=2 "
    small += "student.recipe.path_steps=8 student.recipe.paths_per_file=1 student.recipe.num_openings=3 "
    small += "student.recipe.openings_per_file=2 teacher_sampling.num_steps=2"
    places = [f"directory={run}", f"destination={student}", f"teacher_destination={teacher}"]
    assert main(["model=wan", *places, *small.split()]) == 0
    assert len(list(run.glob("paths_*.pt"))) == len(list(run.glob("openings_*.pt"))) == 2
    for weights, stage in ((student, "student"), (teacher, "dit")):
        model = Wan.from_pretrained(weights)
        trained = torch.load(run / f"{stage}.pt", weights_only=True)["model"]["transformer.proj_out.weight"]
        assert torch.equal(model.network.transformer.proj_out.weight, trained.half().float())
        frames = list(generate(model, held_out_scenes()[0].caption, 21, VANILLA, seed=0))
        assert [len(piece) for piece in frames] == [9, 12]
    assert (model.sampling.solver, model.sampling.num_steps, model.sampling.window_frames) == ("unipc", 2, 12)


def test_without_the_autoencoder_of_another_it_says_what_to_give(capsys):
    assert main(["model=wan", "initial=null"]) == 2
    assert "give initial=experiments/embedded/skyreels" in capsys.readouterr().err


def test_weights_that_another_checkpoint_has_too_become_links(tmp_path):
    own, other = tmp_path / "wan", tmp_path / "skyreels"
    for folder, text in ((own, "trained"), (other, "old")):
        for name, content in (("vae", "shared"), ("transformer", text)):
            (folder / name).mkdir(parents=True)
            (folder / name / "model.safetensors").write_text(content, encoding="utf-8")
    for _ in range(2):  # again changes nothing
        link_shared_weights(own, other)
        assert str((own / "vae" / "model.safetensors").readlink()) == "../../skyreels/vae/model.safetensors"
        assert (own / "vae" / "model.safetensors").read_text(encoding="utf-8") == "shared"
        assert not (own / "transformer" / "model.safetensors").is_symlink()
    assert not (other / "vae" / "model.safetensors").is_symlink()
