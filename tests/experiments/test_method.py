"""From the configuration's groups to a method: which it is, what it is called, and that other processes get it too."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from baselines.every_k import EveryK
from baselines.sink_recent import SinkRecent
from experiments.job.cli import compose_config
from experiments.job.compose import named_method
from experiments.job.errors import BadInput
from experiments.job.groups import config_files
from experiments.job.job import make_job
from experiments.job.method import make_method, name_of
from flowcache.calibration import Calibration
from flowcache.forecast.linear import Linear
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.full import Everything
from flowcache.kv.select.joint import Joint
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.never import Never


@dataclass(frozen=True, kw_only=True)
class Curve(Calibration):
    kind: ClassVar[str] = "curve"
    option: ClassVar[str] = "reuse.curve"
    made_by: ClassVar[str] = "reuse=along_a_curve"
    values: tuple[float, ...]

    @classmethod
    def taken(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"values": tuple(map(float, data.pop("values")))}


@dataclass(kw_only=True)
class AlongACurve(Never):
    """A newcomer's part, calibrated by a file of its own kind."""

    calibrated: ClassVar[tuple[type[Calibration], ...]] = (Curve,)
    curve: Curve | str | Path | None = None


def name(*overrides: str) -> str:
    config = compose_config(list(overrides))
    return name_of(config, *named_method(config.method.name, config.model.name, config.setting.name))


@pytest.mark.parametrize("path", config_files("method"), ids=lambda path: path.stem)
def test_a_method_is_called_what_its_file_is(path):
    assert name(f"method={path.stem}") == path.stem
    assert name("model=skyreels", "setting=paper", f"method={path.stem}") == path.stem


@pytest.mark.parametrize(
    ("overrides", "called"),
    [
        # options are no other method
        (["reuse.threshold=0.1", "forecast.quantity=displacement", "method.near_clean=false"], "flowcache_fast"),
        (["kv.budget=2 chunks", "kv.mix_lambda=0.5"], "flowcache_fast"),
        (["reuse=chunkwise", "forecast=hold", "kv=joint", "kv/store=full_precision"], "flowcache_fast"),
        # parts are named beside it
        (["forecast=linear"], "flowcache_fast + linear"),
        (["kv=sink_recent"], "flowcache_fast + sink_recent"),
        (["kv/store=bfloat16"], "flowcache_fast + bfloat16"),
        (["kv=sink_recent", "forecast=linear"], "flowcache_fast + linear + sink_recent"),
        (
            ["kv=sink_recent", "kv/store=bfloat16", "forecast=linear"],
            "flowcache_fast + linear + sink_recent + bfloat16",
        ),
        (["method=vanilla_kv", "kv=sink_recent"], "vanilla_kv + sink_recent"),
        # with another reuse policy it is another method
        (["reuse=every_k"], "every_k"),
        (["reuse=every_k", "forecast=linear"], "every_k + linear"),
        (["method=teacache_fast", "reuse=chunkwise", "kv=sink_recent"], "chunkwise + sink_recent"),
        (["reuse=chunkwise_slow"], "chunkwise_slow"),
        # a selector that has nothing to select
        (["kv=full"], "flowcache_fast"),
        (["kv=sink_recent", "kv.budget=null"], "flowcache_fast"),
    ],
)
def test_other_parts_are_named_after_the_method_and_without_it_where_they_decide_reuse(overrides, called):
    assert name(*overrides) == called
    assert make_job(compose_config(overrides)).method_name == called


def test_a_methods_own_selector_is_not_named_and_its_loss_is():
    method, parts = named_method("flowcache_fast", "magi", "embedded")
    own = (
        replace(method, kv=KvPolicy(select=SinkRecent(sink_frames=1), budget="2 chunks")),
        parts | {"kv": "sink_recent"},
    )
    assert name_of(compose_config(["kv=sink_recent"]), *own) == "flowcache_fast"
    assert name_of(compose_config(["kv=sink_recent", "kv.budget=1 chunk"]), *own) == "flowcache_fast"
    assert name_of(compose_config(["kv=full"]), *own) == "flowcache_fast + full"
    assert name_of(compose_config(["kv=joint", "kv.budget=1 chunk"]), *own) == "flowcache_fast + joint"


def test_every_part_is_its_groups_choice():
    overrides = ["reuse=every_k", "reuse.every=3", "forecast=linear", "forecast.damping=0.5", "kv=sink_recent"]
    method = make_method(
        compose_config([*overrides, "kv.budget=3 chunks", "kv/store=bfloat16", "method.prefix=published"])
    )
    assert method.reuse == EveryK(every=3, warmup_steps=5)
    assert method.forecast == Linear(damping=0.5)
    assert method.kv == KvPolicy(select=SinkRecent(sink_frames=1), budget="3 chunks", store=Bfloat16())
    assert (method.attention, method.prefix) == ("cached", "published")


def test_a_part_says_itself_which_options_are_calibrated_files(tmp_path, monkeypatch):
    """Read by a path that counts from the repository, wherever the program is started."""
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    for folder in (repository, elsewhere):
        folder.mkdir()
    (repository / "small.json").write_text(json.dumps({"values": [1, 0.5], "weights": "some"}), encoding="utf-8")
    monkeypatch.setattr("experiments.job.paths.ROOT", repository)
    monkeypatch.chdir(elsewhere)
    config = compose_config(["method=vanilla"])
    config.reuse = {"name": "along_a_curve", "_target_": f"{__name__}.AlongACurve", "curve": "small.json"}
    curve = make_method(config).reuse.curve
    assert (curve.name, curve.values, curve.provenance) == ("small", (1.0, 0.5), {"weights": "some"})
    config.reuse.curve = None
    assert make_method(config).reuse.curve is None
    config.reuse.curve = "lost.json"
    with pytest.raises(BadInput, match=r"curve='.*repository/lost\.json' cannot be read as a curve"):
        make_method(config)


def test_a_selector_without_a_budget_is_left_out():
    kept = [make_method(compose_config(options)) for options in ([], ["kv=full"], ["kv.mix_lambda=0.5"])]
    assert all(method == kept[0] and method.kv.select == Everything() for method in kept)
    compressed = make_method(compose_config(["kv.mix_lambda=0.5", "kv.budget=1 chunk"]))
    assert compressed.kv.select == Joint(mix_lambda=0.5)
    assert compressed != kept[0]


@pytest.mark.parametrize("path", [*config_files("reuse"), *config_files("kv")], ids=lambda path: path.stem)
def test_another_process_gets_the_same_method(path):
    method = make_method(compose_config([f"{path.parent.name}={path.stem}", "forecast=linear"]))
    sent = pickle.loads(pickle.dumps(method))
    assert sent == method
    assert sent.described() == method.described()


def test_what_a_part_remembers_is_not_sent():
    part = Chunkwise(threshold=0.1, warmup_steps=2)
    part.accumulated[3] = 0.05
    assert pickle.loads(pickle.dumps(part)).accumulated == {}
    assert part.accumulated == {3: 0.05}
