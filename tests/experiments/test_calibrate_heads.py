"""Head maps: what the attention of every head is measured as, and the command that writes it."""

from __future__ import annotations

import json

import pytest
import torch

from baselines.forcing_kv import ForcingKv
from experiments.job.errors import BadInput
from experiments.run.calibrated import check_calibrations
from experiments.studies import calibrate
from experiments.studies.heads import AttentionMass, frame_shares
from flowcache.kv.head_map import HeadMap
from flowcache.kv.window import WindowCache
from flowcache.sampler import sample
from tests.experiments.embedded import embedded
from tests.experiments.made_records import job_of
from tests.methods import vanilla
from tests.models import wan_goldens


def test_a_frames_share_is_that_of_its_keys():
    query, key = torch.randn(2, 5, 4), torch.randn(2, 12, 4)
    expected = (query @ key.mT / 2).softmax(-1).reshape(2, 5, 3, 4).sum(-1).mean(1)
    torch.testing.assert_close(frame_shares(query, key, 3), expected)
    assert frame_shares(torch.randn(2, 500, 4), key, 3).sum(-1) == pytest.approx(1)


def test_shares_stand_by_the_frames_age_wherever_the_ring_holds_them():
    cache = WindowCache(1, 1, 8, 1, num_frames=5, sink_frames=1)
    watched = AttentionMass(cache, tokens_per_frame=1)
    keys = 50 * torch.eye(8)[None, None]
    for frame in range(8):
        cache.write(0, frame, keys[:, :, frame : frame + 1], keys[:, :, frame : frame + 1])
    cache.attend(0, keys[:, :, 5:6], 4, 7, "own")  # frames 0, 4, 5, 6, 7; 5 is the one that it looks for
    assert watched.mean[0, 0].tolist() == pytest.approx([0, 0, 1, 0, 0], abs=1e-5)


def test_whoever_watches_changes_nothing_and_counts_chunks_with_a_whole_history_alone():
    plain, seen = (wan_goldens.small_generation(vanilla(), num_frames=15, window_frames=7) for _ in range(2))
    watched = AttentionMass(seen.branches[0].cache, seen.tokens_per_frame)
    assert torch.equal(wan_goldens.latents_of(plain), wan_goldens.latents_of(seen))
    assert watched.mean.shape == (3, 3, 7)
    assert watched.chunk_frames == 3
    torch.testing.assert_close(watched.mean.sum(-1), torch.ones(3, 3))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    own = ["model=wan", f"checkpoint={embedded('wan')}", "setting.num_frames=69", "workers=1", "threads=1"]
    arguments = [*own, f"output_dir={folder}", "kv=forcing_kv", "num_prompts=2"]
    assert calibrate.main(arguments) == 0
    return folder / "heads" / "wan_embedded.json", own


def test_the_command_writes_what_both_parts_take_and_says_what_it_was_made_of(written):
    path, _ = written
    data, heads = json.loads(path.read_text(encoding="utf-8")), HeadMap.read(path)
    assert data["model"] == "wan"
    assert len(data["prompts"]) == 2
    assert data["fit"]["spread"] >= 0
    assert heads.size == (6, 6)
    assert heads.chunk_frames == 3
    assert len(heads.mass[0][0]) == 12  # the checkpoint's window
    assert sum(map(len, ForcingKv(heads=path)._static)) <= 36


def test_a_run_takes_heads_of_its_weights_and_refuses_those_of_others(written, tmp_path):
    path, own = written
    for kv in ("forcing_kv", "dummy_forcing"):
        job = job_of(tmp_path, *own, "method=vanilla", f"kv={kv}", f"kv.heads={path}")
        check_calibrations(job)
        assert job.method.described()["kv"]["heads"] == HeadMap.read(path).described()
        assert kv in job.method_name
        assert job.method.kv.select.by_head
    other = tmp_path / "other.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    other.write_text(json.dumps(data | {"weights": "of another"}), encoding="utf-8")
    with pytest.raises(BadInput, match=r"other was calibrated on weights of another, and these are .* or give kv=full"):
        check_calibrations(job_of(tmp_path, *own, "method=vanilla", "kv=forcing_kv", f"kv.heads={other}"))


def test_options_of_plans_are_refused(tmp_path, capsys):
    assert calibrate.main(["kv=forcing_kv", "shares=0.5", f"output_dir={tmp_path}"]) == 2
    assert "shares is of plans, and kv=forcing_kv makes none; leave it out" in capsys.readouterr().err


def test_nothing_is_left_of_a_generation_in_the_next():
    """Two generations of one part: the second is the first once more."""
    mass = (((0.1, 0.2, 0.1, 0.2, 0.2, 0.2),) * 2 + ((0.0, 0.0, 0.1, 0.3, 0.3, 0.3),),) * 3
    method = vanilla(select=ForcingKv(heads=HeadMap(name="made", sha256="0", mass=mass, chunk_frames=3, provenance={})))
    one, other = (
        torch.cat([latent for _, latent in sample(wan_goldens.small_generation(method, num_frames=15))], dim=1)
        for _ in range(2)
    )
    assert torch.equal(one, other)
