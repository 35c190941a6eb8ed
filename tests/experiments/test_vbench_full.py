"""The VBench protocol on the embedded model, small, with a stand-in for the package."""

import json

import numpy as np
import pytest

from eval.vbench.scoring import DimensionScore, Scores
from eval.vbench.suite import NAMES
from experiments.job.errors import BadInput
from experiments.job.experiment import jobs_of
from experiments.records import RecordStore
from experiments.run.launch import Launcher
from experiments.show.results import Column
from experiments.studies import vbench_full
from tests.experiments.conftest import SMALL
from tests.vbench_stand_in import empty_caches, provide, stand_in_environment

CIRCLE, SQUARE = "a red circle moving right on a dark background", "a blue square moving left on a dark background"
FULL_INFO = [
    {"prompt_en": CIRCLE, "dimension": ["temporal_flickering", "scene"]},
    {"prompt_en": CIRCLE, "dimension": ["imaging_quality"]},
    {"prompt_en": SQUARE, "dimension": ["motion_smoothness"]},
]


@pytest.fixture
def protocol(monkeypatch, tmp_path):
    """Two methods and two seeds of the experiment; returns the command's arguments."""
    empty_caches(monkeypatch, tmp_path)
    stand_in_environment(FULL_INFO)

    def two_methods(name, extra):
        jobs, experiment = jobs_of(name, [*extra, "method=flowcache_fast"])
        return jobs, experiment | {"seeds": 2}

    monkeypatch.setattr(vbench_full, "jobs_of", two_methods)
    monkeypatch.setattr("experiments.show.results.PUBLISHED", tmp_path / "results")
    small = [argument for argument in SMALL if not argument.startswith(("num_prompts", "metrics"))]
    return [*small, f"output_dir={tmp_path}", "metrics=[psnr]"]


def test_all_methods_prompts_and_seeds_of_the_package(protocol):
    entered, _ = vbench_full.entrants(protocol)
    assert [entrant.name for entrant in entered] == ["vanilla", "flowcache_fast"]
    for entrant in entered:
        assert [job.seed for job in entrant.jobs] == [3, 4]
        assert all(job.prompts == (CIRCLE, SQUARE) for job in entrant.jobs)  # twice in the file, made once


def test_makes_scores_and_goes_on_where_it_stopped(protocol, tmp_path, capsys):
    provide("imaging_quality")
    arguments = [*protocol, "num_prompts=1"]
    assert vbench_full.main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 methods x 1 prompt x 2 seeds = 4 videos (2 a method), 4 videos to make" in said
    assert len(list((tmp_path / "runs").glob("*/video.mp4"))) == 4
    saved = sorted((tmp_path / "vbench").glob("*.json"))
    assert len(saved) == 2
    content = json.loads(saved[0].read_text())
    assert set(content["videos"]) == {f"{CIRCLE}-0.mp4", f"{CIRCLE}-1.mp4"}
    assert set(content["dimensions"]) == {"temporal_flickering", "imaging_quality"}
    assert content["dimensions"]["imaging_quality"]["num_expected"] == 5
    assert "amt-s.pth" not in content["not_run"]["motion_smoothness"]  # its prompt has no video: that is why
    assert "tag2text_swin_14m.pth" in content["not_run"]["scene"]
    (table,) = (tmp_path / "tables").glob("*.md")
    assert "| temporal_flickering | 0.1500 (n 2) | 0.1500 (n 2) |" in table.read_text()
    assert "vanilla: Total (partial: 2 of 16 dimensions, 6 video scores missing)" in table.read_text()

    provide("scene")
    assert vbench_full.main(arguments) == 0
    said = capsys.readouterr().out
    assert ", 0 videos to make" in said
    assert "vanilla: scene: 0.1500 (2 videos)" in said
    assert "vanilla: imaging_quality" not in said  # scored before
    assert "scene" in json.loads(saved[0].read_text())["dimensions"]

    assert not (tmp_path / "results").exists()
    assert vbench_full.main([*arguments, "publish=true"]) == 0
    assert (tmp_path / "results" / "tables" / table.name).is_file()


def test_a_launchers_tasks_make_the_videos_and_score_none(protocol, tmp_path, monkeypatch, capsys):
    quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
    launcher = Launcher("basic", (f"output_dir={tmp_path}", *quiet), 2)
    monkeypatch.setattr(vbench_full, "launcher_of", lambda arguments: (launcher, arguments))
    assert vbench_full.main([*protocol, "num_prompts=1"]) == 0
    assert [record.status for record in RecordStore(tmp_path).all()] == ["finished"] * 4
    assert not (tmp_path / "vbench").exists()
    said = capsys.readouterr().out
    assert "2 tasks by basic" in said
    assert "the same command without launcher and tasks scores the videos" in said


def test_other_videos_have_other_scores(protocol, tmp_path):
    (one, _), _ = vbench_full.entrants([*protocol, "num_prompts=1"])
    vbench_full.make_videos([one])
    first = one.scores_path()
    (two, _), _ = vbench_full.entrants(protocol)
    vbench_full.make_videos([two])
    assert two.scores_path() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompts=mine.txt"], "the prompts are VBench's own"),
        (["num_prompts=3"], "choose 1 to 2"),
        (["sead=1"], "did you mean seed"),
    ],
)
def test_bad_arguments(protocol, arguments, message, capsys):
    assert vbench_full.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_the_package(monkeypatch, tmp_path):
    empty_caches(monkeypatch, tmp_path)
    with pytest.raises(BadInput, match=r"python -m eval\.vbench install"):
        vbench_full.entrants([])


@pytest.mark.parametrize("num_prompts", [5, 8])
def test_every_score_has_its_interval_or_its_reason(num_prompts):
    per_video = {f"{place}-0.mp4": 0.5 + 0.01 * place for place in range(num_prompts)}
    result = DimensionScore(float(np.mean(list(per_video.values()))), per_video, num_prompts)
    names = ("imaging_quality", "aesthetic_quality")  # both of Quality, none of Semantic
    scores = Scores(dict.fromkeys(names, result), {name: "no weights" for name in NAMES if name not in names})
    frame = vbench_full.score_frame({"vanilla": scores}).set_index("score")
    quality = frame.loc["Quality"]
    if num_prompts == 5:
        assert np.isnan(quality["vanilla_low"])
    else:
        assert quality["vanilla_low"] < quality["vanilla"] < quality["vanilla_high"]
    assert quality["vanilla_n"] == num_prompts
    column = Column("vanilla", "vanilla", "{:.2f}", "{vanilla_low:.2f} to {vanilla_high:.2f}")
    cells = {name: column.cell(row) for name, row in frame.astype({"vanilla": float}).iterrows()}
    assert cells["Total"] == cells["Semantic"] == cells["scene"] == ("n/a", "")
    assert cells["imaging_quality"][1].endswith(f"n {num_prompts})")
    assert (" to " in cells["Quality"][1]) == (num_prompts == 8)
