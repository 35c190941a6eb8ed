"""What W&B is given, read back from an offline run, and that no job fails because of it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from eval.video_io import read_video, refuse_random_video
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import make_job
from experiments.run import sweep
from experiments.run.main_job import run_job
from experiments.run.runner import Runner
from experiments.show.summary import summarise
from experiments.show.tracking import row_metrics, track
from tests.experiments.conftest import SMALL
from tests.experiments.made_records import trace
from tests.experiments.wandb_offline import read_run

REUSING = ["reuse.threshold=0.3", "reuse.warmup_steps=2"]


@pytest.fixture(autouse=True)
def nothing_at_home(monkeypatch, tmp_path):
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))


def test_rows_are_means_over_videos():
    rows = row_metrics([trace(), trace(reused=((0, 2), (1, 3)))])
    assert [row["row/index"] for row in rows] == list(range(6))
    assert [row["row/active_chunks"] for row in rows] == [1, 1, 2, 2, 1, 1]
    assert [row["row/computed_chunks"] for row in rows] == [1, 1, 1.5, 2, 1, 0.5]
    assert [row["row/gflops"] for row in rows] == [1, 1, 1.5, 2, 1, 0.5]
    assert [row["row/kv_tokens"] for row in rows] == [96, 96, 192, 192, 192, 192]
    assert [row["row/kv_mib"] for row in rows] == [1, 1, 2, 2, 2, 2]
    assert "row/distance" not in rows[0]  # not measured
    assert rows[3]["row/distance"] == pytest.approx((0.3 + 0.1) / 2)
    vanilla = trace().assign(distance=None, accumulated=None)
    assert set(row_metrics([vanilla])[3]) == set(rows[0]) - {"row/accumulated"}


def test_an_offline_run_holds_everything(small_job, tmp_path):
    job = small_job(*REUSING, "wandb.mode=offline", "wandb.tags=[mine]")
    records = Runner(job).run()
    said = []
    assert track(job, records, group="a sweep", say=said.append) is not None
    assert said == []
    logged = read_run(tmp_path)
    assert (logged.run.project, logged.run.display_name) == ("flowcache-bench", "magi-embedded-flowcache_fast")
    assert logged.run.run_group == "a sweep"
    assert list(logged.run.tags) == ["magi", "embedded", "flowcache_fast", "mine"]
    assert logged.exit_code == 0

    config = logged.config
    assert (config["method"], config["seed"], config["num_steps"]) == ("flowcache_fast", 3, 8)
    assert config["method_config"]["reuse"]["threshold"] == 0.3
    assert (config["weights"], config["code"]) == (records[0].weights, records[0].code)
    assert config["prompts"] == list(job.prompts)

    store = Runner(job).store
    expected = row_metrics([pd.read_parquet(store.trace_path(record.key)) for record in records])
    by_row = [row for row in logged.history if "row/index" in row]
    assert len(by_row) == len(expected)
    for row, wanted in zip(by_row, expected, strict=True):
        assert {key: row[key] for key in wanted} == pytest.approx(wanted)

    (media,) = [row for row in logged.history if "video/path" in row]
    files = {key.removesuffix("/path"): value for key, value in media.items() if key.endswith("/path")}
    assert set(files) == {"figures/reuse_map", "figures/frames", "tables/videos", "tables/summary", "video"}
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    assert all((folder / path).stat().st_size > 0 for path in files.values())
    assert read_video(folder / files["video"]).shape == (48, 64, 3 * 64, 3)  # vanilla, the method, their difference
    table = pd.read_json(folder / files["tables/videos"], orient="split")
    assert table["key"].tolist() == [record.key for record in records]
    assert table["ssim"].tolist() == pytest.approx([record.metrics["ssim"] for record in records])

    assert table["latency_first_chunk_s"].tolist() == pytest.approx([r.chunk_latency_s[0] for r in records])
    assert table["fps"].tolist() == pytest.approx([48 / record.latency_s for record in records])

    summary = summarise(records)
    assert logged.summary["fps"] == pytest.approx(summary["fps"])
    assert logged.summary["latency_first_chunk_s"] < logged.summary["latency_s"]
    assert logged.summary["flops_share"] == pytest.approx(summary["flops_share"])
    assert logged.summary["speedup_n"] == summary["speedup_n"]
    (artifact,) = [each for each in logged.artifacts if each.type == "records"]  # beside W&B's own of the tables
    expected = {f"{record.key}/{name}" for record in records for name in ("record.json", "trace.parquet")}
    assert {entry.path for entry in artifact.manifest.contents} == expected


def test_the_same_records_are_logged_once_and_whatever_is_new_again(monkeypatch, small_job, tmp_path):
    job = small_job("method=vanilla", "num_prompts=1", "wandb.mode=offline")
    records, said = Runner(job).run(), []

    def logged(job, records, **options):
        return track(job, records, say=said.append, **options)

    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)
        assert logged(job, records) is None  # and is not taken for logged
    first = logged(job, records)
    assert first is not None
    assert logged(job, records) == first
    others = [
        logged(job, records, group="a sweep"),
        logged(replace(job, wandb={**job.wandb, "tags": ["mine"]}), records),
        logged(job, [replace(record, metrics={**record.metrics, "psnr": 20.0}) for record in records]),
    ]
    assert len({first, *others}) == 4
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 4
    shutil.rmtree(Path(first).parent)
    assert logged(job, records) not in (None, first)
    assert len(said) == 1


def test_the_video_beside_its_baseline_is_marked_where_weights_are_random(small_job, tmp_path):
    job = small_job("method=every_k", "weights=random", "num_prompts=1", "wandb.mode=offline")
    said = []
    track(job, Runner(job).run(), say=said.append)
    assert said == []
    (video,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/*.mp4")
    with pytest.raises(ValueError, match="was made with random weights"):
        refuse_random_video(video)


@pytest.fixture
def broken(monkeypatch):
    """Makes one of W&B's calls raise; a table of what raises where."""
    import wandb

    real = wandb.init

    def break_at(place: str, error: BaseException) -> None:
        def fail(*args, **kwargs):
            raise error

        def init(**settings):
            run = real(**settings)
            monkeypatch.setattr(run, place, fail)
            return run

        if place == "import":
            monkeypatch.setitem(sys.modules, "wandb", None)
        else:
            monkeypatch.setattr(wandb, "init", fail if place == "init" else init)

    return break_at


@pytest.mark.parametrize("place", ["import", "init", "log", "log_artifact", "finish"])
def test_no_job_fails_because_of_wandb(place, broken, small_job, tmp_path, monkeypatch):
    job = small_job("method=vanilla", "num_prompts=1", "wandb.mode=offline")
    records = Runner(job).run()
    broken(place, OSError("no network"))
    said = []
    assert track(job, records, say=said.append) is None
    assert len(said) == 1
    assert said[0].startswith("W&B: not logged (")
    assert "wandb.mode=disabled leaves W&B out" in said[0]
    monkeypatch.undo()
    import wandb

    wandb.teardown()


def test_the_job_says_so_and_returns_its_records(broken, tmp_path, capsys):
    broken("init", RuntimeError("no service [/dev/null]"))  # which the console could take for a closing tag
    config = compose_config([*SMALL, f"output_dir={tmp_path}", "method=vanilla", "num_prompts=1"])
    (record,) = run_job(config)
    assert record.status == "finished"
    assert "not logged (RuntimeError: no service [/dev/null])" in " ".join(capsys.readouterr().out.split())


def test_disabled_touches_nothing(broken, small_job, tmp_path):
    broken("init", AssertionError("called"))
    job = small_job("method=vanilla", "num_prompts=1", "wandb.mode=disabled")
    said = []
    assert track(job, Runner(job).run(), say=said.append) is None
    assert said == []
    assert not (tmp_path / "wandb").exists()


def test_a_sweep_is_a_group_of_runs(small_job, tmp_path, monkeypatch):
    logged = []
    Runner(small_job("method=vanilla", "num_prompts=1")).run()
    monkeypatch.setattr(sweep, "track", lambda job, records, group: logged.append((job.method_name, records, group)))
    arguments = [*SMALL, "experiment=ablation_refresh", "num_prompts=1", f"output_dir={tmp_path}"]
    monkeypatch.setattr(sweep, "run_jobs", lambda *given: None)
    assert sweep.main(arguments) == 0
    assert len(logged) == 9
    assert {group for *_, group in logged} == {"ablation_refresh"}
    assert [len(records) for name, records, _ in logged if name == "vanilla"] == [1]


@pytest.mark.parametrize(
    ("override", "message"), [("wandb.mode=onlin", "did you mean online"), ("wandb.tags=mine", "must be a list")]
)
def test_wrong_settings_are_refused(override, message):
    with pytest.raises(BadInput, match=message):
        make_job(compose_config([override]))
