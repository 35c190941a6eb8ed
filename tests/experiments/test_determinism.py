"""One seed on one machine: the same latents to the byte, whatever the method, and a record that says so."""

from __future__ import annotations

import pytest
import torch

from experiments.job.groups import config_files
from experiments.run import environment
from flowcache.sampler import sample

REUSING = {"every_k": "reuse.every=2"}  # at so few steps
REUSING |= dict.fromkeys(("teacache_slow", "teacache_fast", "flowcache_slow", "flowcache_fast"), "reuse.threshold=0.2")
SMALL = ["setting.height=32", "setting.width=32"]
LENGTHS = {"magi": (48, 96), "skyreels": (37, 57)}  # two chunks; with a budget, as many as it drops keys of
CASES = [(path.stem, ()) for path in config_files("method")] + [("flowcache_fast", ("kv.budget=1 chunk",))]


@pytest.mark.parametrize(("name", "options"), CASES, ids=["-".join([name, *options]) for name, options in CASES])
@pytest.mark.parametrize("model", LENGTHS)  # loaded once for all of CASES
def test_the_same_seed_gives_the_same_latents(name, options, model, small_job):
    num_frames = LENGTHS[model][bool(options)]
    reusing = [REUSING[name], "reuse.warmup_steps=1"] if name in REUSING else []
    job = small_job(f"model={model}", f"method={name}", f"setting.num_frames={num_frames}", *SMALL, *reusing, *options)
    network = job.load_model()

    def latents(seed):
        given = (job.prompts[0], job.num_frames, job.method, seed)
        return dict(sample(network.generation(*given, **job.generation_options)))

    first, second, other = latents(3), latents(3), latents(4)
    assert len(first) > 1
    assert first.keys() == second.keys()
    assert all(torch.equal(first[chunk], second[chunk]) for chunk in first)
    assert not any(torch.equal(first[chunk], other[chunk]) for chunk in first)


def test_a_record_says_what_is_deterministic():
    assert environment.describe("cpu")["deterministic"] == "latents and files of videos to the byte; not times"
