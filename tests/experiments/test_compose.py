"""What is composed is what Hydra composes, though it is asked once for what is chosen from the groups."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.job.compose import composed
from experiments.job.errors import BadInput
from experiments.job.groups import CONF

GIVEN = [
    [],
    ["seed=3", "method=every_k", "reuse.every=3", "kv.budget=1 chunk", "metrics=[psnr,ssim]"],
    ["model=skyreels", "kv/store=int8", "kv.store={name: mine}", "wandb={mode: offline, tags: [a, b]}"],
    ["setting=embedded", "method=every_k", "model=magi", "kv/store=int8", "kv=r_kv"],
    ["reuse=every_k", "setting=paper", "model=wan", "method=flowcache_fast"],
    ["kv={mix_lambda: 0.2}", "kv=joint", "kv.mix_lambda=0.3", "method=vanilla", "method=every_k"],
    ["prompts='a, b'", r"prompts=\[a\]", "checkpoint=null", "seed=${num_prompts}", "num_prompts=2"],
    ["hydra.job.name=other", "hydra/job_logging=none", "++seed=4", "~wandb.tags", "+kv.more=1"],
]


def by_hydra(overrides):
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        return compose("config", overrides=overrides)


@pytest.mark.parametrize("overrides", GIVEN, ids=" ".join)
def test_it_is_what_hydra_composes(overrides):
    for _ in range(2):
        found, expected = composed(overrides), by_hydra(overrides)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
        assert OmegaConf.to_container(found, resolve=True) == OmegaConf.to_container(expected, resolve=True)
        for key in ("", "kv", "kv.store", "wandb"):
            node, other = (OmegaConf.select(config, key) if key else config for config in (found, expected))
            assert list(node) == list(other)
            assert OmegaConf.is_struct(node) == OmegaConf.is_struct(other)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sead=3"],
        ["kv.store={bits: 8}"],
        ["seed.of=3"],
        ["method=none"],
        ["method@here=every_k"],
        ["seed=1,2"],
    ],
    ids=" ".join,
)
def test_what_it_refuses_hydra_refuses_in_these_words(overrides):
    for _ in range(2):
        with pytest.raises(BadInput) as found:
            composed(overrides)
        with pytest.raises(HydraException) as expected:
            by_hydra(overrides)
        assert str(found.value) == f"configuration: {expected.value}"


def test_each_is_a_copy():
    first = composed(["method=every_k", "reuse.every=3"])
    first.reuse.every, first.metrics[0] = 5, "other"
    second = composed(["method=every_k"])
    assert (second.reuse.every, second.metrics[0]) == (2, "psnr")
    assert second.reuse.every == by_hydra(["method=every_k"]).reuse.every
