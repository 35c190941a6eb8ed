"""How the embedded SkyReels-V2 is trained: on what the sampler shows it, and up to a checkpoint that generates."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from eval.scenes import held_out_scenes
from experiments.training.captions import build_tokenizer
from experiments.training.skyreels_dit import NO_CAPTION, TextAndTransformer, Windows, visited_states
from experiments.training.skyreels_vae import WanAutoencoder
from experiments.training.train_embedded import main
from flowcache import generate
from flowcache.method import VANILLA
from flowcache.models.skyreels import Sampling, SkyReels
from flowcache.models.skyreels.window import WindowLatents, all_times
from flowcache.models.wan.text import TextEncoder

SAMPLING = Sampling(num_steps=6, ar_step=2, causal_block_size=2, base_num_frames=21, overlap_history=5)  # 3 chunks
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 32, "text_dim": 16}
TEXT = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
RECIPE = {
    "caption_length": 16,
    "windows_of_each_kind": 1,
    "shift_independent": 3.0,
    "history_noise": 0.0,
    "caption_dropout": 0.0,
    "opening_share": 0.0,
    "motion_weights": {},
    "plain_weight": 1.0,
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def windows(**recipe) -> Windows:
    torch.manual_seed(0)
    session = SimpleNamespace(generator=torch.Generator().manual_seed(1), choice=random.Random(1))
    model = TextAndTransformer(TRANSFORMER, TEXT)
    return Windows(draw(4, 16, 6, 4, 4).half(), held_out_scenes()[:4], model, SAMPLING, RECIPE | recipe, session)


def test_the_autoencoder_takes_clips_at_once_as_diffusers_does_frame_by_frame():
    torch.manual_seed(0)
    ours = WanAutoencoder(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval()
    video, latent = draw(2, 3, 13, 16, 16).clamp(-1, 1), draw(2, 16, 4, 2, 2)
    with torch.no_grad():
        posterior = ours.vae.encode(video).latent_dist
        mean, log_variance = ours.moments(video)
        torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_variance, posterior.logvar, atol=1e-5, rtol=0)
        assert torch.equal(ours.encode_clip(video[1]), ours.encode(video[1:])[0])
        torch.testing.assert_close(ours.decode(latent).clamp(-1, 1), ours.vae.decode(latent).sample, atol=1e-5, rtol=0)
        assert ours.decode(latent[:, :, :1]).shape == (2, 3, 1, 16, 16)


@pytest.mark.parametrize("given", [0, 1])
def test_visited_states_are_those_of_the_sampler(given):
    """Timesteps as the sampler tells the network, and noise levels as its solvers count them."""
    states = visited_states(SAMPLING)
    times = torch.tensor(all_times(SAMPLING)).float()
    schedule = SAMPLING.schedule(21, times[: SAMPLING.num_steps].int().tolist(), given, continues=False)
    first = len(states.times) - len(schedule.rows) if given else 0
    latents = draw(1, 16, 6, 4, 4)
    frames = None if not given else draw(1, 16, 2, 4, 4, seed=1)
    window = WindowLatents(SAMPLING, schedule, schedule.windows[0], latents, frames, frames)
    for row in schedule.rows:
        level, time, denoised = (part[first + row.index] for part in (states.levels, states.times, states.denoised))
        for chunk in schedule.windows[0].chunks:
            assert (times[window.times(row, chunk)] == time[chunk]).all()
            assert denoised[chunk] == (chunk in row.chunks)
        window.begin(row)
        for step in row.steps:
            window.advance(step, torch.zeros(1, 16, 2, 4, 4))
        window.end(row)
        for step in row.steps:
            if step.chunk not in row.finished:
                solver = window._solvers[step.chunk]
                assert solver._levels[solver._step - 1] == level[step.chunk]
        assert not any(level[chunk] for chunk in range(given, row.chunks[0]))
        assert all(level[chunk] == 1 for chunk in range(row.chunks[-1] + 1, 3))
        assert all(level[chunk] == pytest.approx(0.02) for chunk in range(given))


def test_openings_are_the_states_in_which_the_first_chunk_is_denoised():
    states = visited_states(SAMPLING)
    first = states.denoised[:, 0] == 1
    assert first[: states.num_opening].all()
    assert not first[states.num_opening :].any()
    always = windows(opening_share=1.0)
    assert all(always.visited()[2][0] == 1 for _ in range(50))


def test_a_motion_of_weight_nought_is_not_drawn():
    batch = windows()
    motions = {scene.motion for scene in batch.scenes}
    chosen, *others = sorted(motions)
    assert others
    batch.weights = windows(motion_weights=dict.fromkeys(others, 0.0)).weights
    seen = []
    batch.text_features = lambda captions: seen.extend(captions) or windows().text_features(captions)
    batch.losses()
    assert set(seen) <= {scene.caption for scene in batch.scenes if scene.motion == chosen}


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_vanishes_for_the_velocity_that_the_solver_steps_along(causal):
    batch = windows()
    level, clean = torch.tensor([0.0, 0.3, 0.9]), draw(1, 16, 6, 4, 4, seed=2)
    seen = {}

    def exact(noisy, time, caption, fps, block):
        seen.update(time=time, block=block, noisy=noisy)
        # What the solver makes of a velocity is noisy - level * velocity: it must be the clean latent.
        return (noisy - clean) / level.clamp(min=1e-3).repeat_interleave(2)[:, None, None]

    batch.model.network.joint = exact
    text, time, denoised = draw(1, 16, 16), torch.tensor([0.0, 300.0, 900.0]), torch.tensor([0.0, 1.0, 1.0])
    assert batch.loss(clean, text, level, time, denoised, causal) < 1e-9
    assert seen["time"].tolist() == [0, 0, 300, 300, 900, 900]
    assert seen["block"] == (2 if causal else None)
    assert torch.equal(seen["noisy"][:, :, :2], clean[:, :, :2])
    batch.model.network.joint = lambda *arguments: torch.zeros_like(clean)
    assert batch.loss(clean, text, level, time, denoised, causal) == pytest.approx(2, rel=0.2)
    batch.recipe["history_noise"] = 0.5
    batch.model.network.joint = exact
    batch.loss(clean, text, level, time, denoised, causal)
    assert (seen["noisy"][:, :, :2] - clean[:, :, :2]).std() == pytest.approx(0.5, rel=0.2)


def test_every_kind_of_window_is_in_a_batch_and_every_parameter_learns():
    batch = windows()
    kinds, loss = [], batch.loss

    def record(clean, text, level, time, denoised, causal):
        kinds.append((bool((time == (1000 * level).floor()).all() and denoised.all()), causal))
        return loss(clean, text, level, time, denoised, causal)

    batch.loss = record
    sum(batch.losses().values()).backward()
    assert [causal for _, causal in kinds] == [False, True, False, True]
    assert [independent for independent, _ in kinds[:2]] == [True, True]
    # The output starts at nought, so that the first gradient stops there; after one step all else follows.
    model = batch.model
    assert model.transformer.proj_out.weight.grad.abs().max() > 0
    torch.nn.init.normal_(model.transformer.proj_out.weight)
    sum(batch.losses().values()).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert not untouched


def test_captions_reach_training_as_they_reach_generation():
    batch = windows()
    encoder = TextEncoder(batch.model.text_encoder, build_tokenizer(16))
    captions = [scene.caption for scene in held_out_scenes()[:3]]
    torch.testing.assert_close(batch.text_features(captions), torch.cat([encoder(text) for text in captions]))
    dropped = windows(caption_dropout=1.0).text_features(captions * 10)
    without = torch.cat([encoder(text) for text in NO_CAPTION])
    nearest = (dropped[:, None] - without).abs().amax(dim=(2, 3)).min(dim=1)
    assert nearest.values.max() < 1e-5
    assert set(nearest.indices.tolist()) == {0, 1}


TINY = """
num_processes=1 vae.config.base_dim=2 vae.check_frames=49
vae.recipe.phases=[{"num_steps":1,"num_frames":1,"clips_per_process":2},{"num_steps":1,"num_frames":5,"clips_per_process":1}]
dit.recipe.num_steps=2 dit.recipe.num_clips=2 dit.transformer.num_layers=1 dit.transformer.num_attention_heads=2
dit.transformer.ffn_dim=64 decoder.recipe.num_steps=1 decoder.recipe.num_frames=13
sampling.base_num_frames=37 sampling.num_steps=2 sampling.ar_step=1
"""


@pytest.mark.slow
def test_every_stage_runs_and_the_export_loads_and_generates(tmp_path):
    run, weights = tmp_path / "run", tmp_path / "weights"
    arguments = ["model=skyreels", f"directory={run}", f"destination={weights}", *TINY.split()]
    assert main(arguments) == 0
    logged = [json.loads(line) for line in (run / "dit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert logged[-1]["step"] == 2
    model = SkyReels.from_pretrained(weights)
    assert model.sampling == Sampling(
        num_steps=2, ar_step=1, height=64, width=64, guidance_scale=2.0, base_num_frames=37
    )
    assert model.text_encoder.max_length == 16
    trained = torch.load(run / "dit.pt", weights_only=True)["model"]
    written = model.network.transformer.proj_out.weight
    assert torch.equal(written, trained["transformer.proj_out.weight"].half().float())
    statistics = json.loads((run / "latent_statistics.json").read_text(encoding="utf-8"))
    assert {name: model.vae.vae.config[name] for name in statistics} == statistics

    prompt = held_out_scenes()[0].caption
    frames = list(generate(model, prompt, model.frames_of(3), VANILLA, seed=0))
    assert [tuple(piece.shape) for piece in frames] == [(17, 64, 64, 3), (20, 64, 64, 3), (20, 64, 64, 3)]
    index = json.loads((weights / "model_index.json").read_text(encoding="utf-8"))
    assert all((weights / folder).is_dir() for folder, value in index.items() if isinstance(value, list))
    assert not list(weights.glob(".partial*"))

    # Finished stages are not run again.
    before = (run / "dit.pt").read_bytes()
    assert main(arguments) == 0
    assert (run / "dit.pt").read_bytes() == before

    # After no step at all, training that goes on from a checkpoint leaves the same one.
    again = [f"directory={tmp_path / 'again'}", f"destination={tmp_path / 'same'}", f"initial={weights}"]
    assert main(["model=skyreels", *again, *TINY.split(), "dit.recipe.num_steps=0", "dit.recipe.seed=7"]) == 0
    for path in weights.rglob("*.safetensors"):
        before, after = load_file(path), load_file(tmp_path / "same" / path.relative_to(weights))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
