"""MAGI-1's settings: the official ranges and guidance scales, and reading official configuration files."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from flowcache.models.magi.checkpoint import RELEASES
from flowcache.models.magi.config import NETWORKS, MagiConfig, Runtime
from tests.models.magi_goldens import manifest
from tests.models.releases import magi_document

RANGES = manifest("h_kv_ranges_in_chunks")
LOOK_BACKS = {
    "default": {},
    "n2c5432_clean1": {"noise2clean_kvrange": (5, 4, 3, 2), "clean_chunk_kvrange": 1},
    "n2c5432_clean-1": {"noise2clean_kvrange": (5, 4, 3, 2)},
    "n2c21_clean3": {"noise2clean_kvrange": (2, 1), "clean_chunk_kvrange": 3},
}
CLEAN_STEP = 8  # of 8: how the recorded tables name the clean chunk


@pytest.mark.parametrize("case", sorted(RANGES))
def test_ranges_of_keys_are_the_official_ones(case):
    setting, *rest = case.split("; ")
    runtime = Runtime(num_steps=8, **LOOK_BACKS[setting])
    if rest[0].startswith("prefix"):
        first, steps = 0, None
        look_backs = [runtime.prefix_look_back] * int(re.search(r"\d+", rest[0])[0])
    else:
        first, steps = int(rest[0].split("=")[1]), json.loads(rest[1].split("=")[1])
        look_backs = [runtime.look_back(None if step == CLEAN_STEP else step) for step in steps]
    chunks = range(first, first + len(look_backs))
    ranges = [
        [0 if back is None else max(0, chunk + 1 - back), chunk + 1]
        for chunk, back in zip(chunks, look_backs, strict=True)
    ]
    assert ranges == RANGES[case]


def test_guidance_scales_are_those_of_the_range_that_begins_below():
    """A time counts as beyond a threshold that it reaches: thresholds are lowered by 1e-7."""
    runtime = Runtime(prev_chunk_scales=(1.0, 2.0, 3.0, 4.0, 5.0), text_scales=(6.0, 7.0, 8.0, 9.0, 10.0))
    for t, index in (
        (0.0, 0),
        (0.0216, 0),
        (0.0217, 1),
        (0.05, 1),
        (0.1, 2),
        (0.2999, 2),
        (0.3, 3),
        (0.999, 4),
        (1.0, 4),
    ):
        t = torch.tensor(t).item()  # times are float32
        assert runtime.guidance_scales(t) == (runtime.prev_chunk_scales[index], runtime.text_scales[index])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"cfg_number=2 is not a guidance of MAGI-1; choose 1 \(distilled\) or 3"):
        Runtime(cfg_number=2)
    for name in ("cfg_t_range", "prev_chunk_scales", "text_scales"):
        with pytest.raises(ValueError, match="must have one entry each per time range"):
            Runtime(**{name: (0.0, 1.0)})
    with pytest.raises(ValueError, match="num_steps=10 does not divide into 4 entries of noise2clean_kvrange"):
        Runtime(num_steps=10, noise2clean_kvrange=(5, 4, 3, 2))


def write(path, **changes):
    """The distilled 4.5B's official document with some entries replaced."""
    document = magi_document("4.5B", distill=True)
    for section, entries in changes.items():
        document[section].update(entries)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_reads_an_official_configuration(tmp_path):
    engine = {"distill_nearly_clean_chunk_threshold": 0.25, "shortcut_mode": "16,16,8"}
    path = write(tmp_path / "config.json", runtime_config={"num_steps": 16}, engine_config=engine)
    config = MagiConfig.from_json(path)
    dit, runtime = config.dit, config.runtime
    assert (dit.num_layers, dit.hidden_size, dit.num_query_groups, dit.caption_max_length) == (34, 3072, 8, 800)
    assert (dit.params_dtype, dit.distill, dit.gated_linear_unit) == (torch.bfloat16, True, False)
    assert (runtime.num_steps, runtime.cfg_number, runtime.clean_chunk_kvrange) == (16, 1, 1)
    assert runtime.noise2clean_kvrange == (5, 4, 3, 2)
    assert runtime.text_scales == (7.5, 7.5, 7.5, 0.0, 0.0)
    assert (runtime.near_clean_threshold, runtime.shortcut_mode) == (0.25, "16,16,8")
    assert hash(config) == hash(MagiConfig.from_json(path))


@pytest.mark.parametrize(("size", "distill"), RELEASES)
def test_the_releases_are_those_of_the_official_files(tmp_path, size, distill):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(magi_document(size, distill)), encoding="utf-8")
    config, release = MagiConfig.from_json(path), RELEASES[size, distill]
    assert config == release
    assert config.runtime.trained_num_steps == ()
    assert replace(config.dit, distill=True) == NETWORKS[size]
    # What the official code fixes outside its configurations.
    runtime = release.runtime
    assert (runtime.schedule, runtime.shift, runtime.near_clean_history_weight) == ("sd3", 3.0, 0.7)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_reads_the_parameters_type(tmp_path, name):
    path = write(tmp_path / "config.json", model_config={"params_dtype": f"torch.{name}"})
    assert MagiConfig.from_json(path).dit.params_dtype == getattr(torch, name)


def test_a_configuration_may_name_the_step_counts_it_was_trained_for(tmp_path):
    official = MagiConfig.from_json(write(tmp_path / "official.json"))
    trained = MagiConfig.from_json(write(tmp_path / "own.json", runtime_config={"trained_num_steps": [16, 64]}))
    assert trained == replace(official, runtime=replace(official.runtime, trained_num_steps=(16, 64)))
    for counts in (64, "64", [0], [True], [16.5]):
        with pytest.raises(ValueError, match=r"trained_num_steps=.* must be a list of whole numbers of at least 1"):
            MagiConfig.from_json(write(tmp_path / "bad.json", runtime_config={"trained_num_steps": counts}))


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no MAGI-1 configuration at .*missing.json; copy the official JSON"):
        MagiConfig.from_json(tmp_path / "missing.json")
    broken = tmp_path / "broken.json"
    for text in ("{", json.dumps({"model_config": {}, "runtime_config": {}})):
        broken.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"is not a MAGI-1 configuration .* expected JSON with model_config"):
            MagiConfig.from_json(broken)
    with pytest.raises(ValueError, match="asks for fp8_quant, which this library does not run; use a bf16 checkpoint"):
        MagiConfig.from_json(write(tmp_path / "fp8.json", engine_config={"fp8_quant": True}))
