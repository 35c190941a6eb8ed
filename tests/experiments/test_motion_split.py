"""Methods at equal compute by what moves: by hand, from made records, and as a file of the figures' command."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from experiments.job.experiment import read_experiment
from experiments.records.collect import collect
from experiments.show import figures
from experiments.show.motion_split import by_motion, motion_class, table
from experiments.show.results import markdown
from experiments.show.reuse_curve import Curves, curves_of, reuse_videos
from tests.experiments.made_records import job_of, made

STILL, MOVING, BOUNCING = (
    f"a red circle {word} on a grey background" for word in ("staying still", "moving up", "bouncing")
)
PROMPTS = (
    *(f"a {colour} square moving left on a dark background" for colour in ("red", "blue", "green", "cyan")),
    STILL,
)
PROMPTS = (*PROMPTS, MOVING, f"{MOVING[:-15]}light background", BOUNCING)
CURVES = Curves(
    option="reuse.warmup_steps",
    title="warm-up",
    at=0,
    compared=["flowcast", "flowcache"],
    shares=(0.25, 0.5),
    by_motion=True,
)
SETTINGS = (  # overrides, compute left, PSNR in dB of what moves
    (["method=flowcast_fast", "reuse.share=0.25"], 0.25, 40.0),
    (["method=flowcast_fast", "reuse.share=0.5"], 0.5, 50.0),
    (["method=flowcache_fast", "reuse.warmup_steps=0", "reuse.threshold=0.3"], 0.2, 30.0),
    (["method=flowcache_fast", "reuse.warmup_steps=0", "reuse.threshold=0.1"], 0.6, 46.0),
    (["method=every_k", "reuse.warmup_steps=0", "reuse.every=2"], 0.5, 35.0),
    (["method=every_k", "reuse.warmup_steps=0", "reuse.every=1.5"], 0.7, 45.0),
    (["method=every_k", "reuse.warmup_steps=5", "reuse.every=2"], 0.5, 59.0),  # no curve that is compared
)


@pytest.fixture
def jobs(tmp_path):
    """What stays still has 5 dB more by FlowCache alone; a red thing has 1 dB more by all."""
    jobs = [job_of(tmp_path, "method=vanilla")]
    for prompt in PROMPTS:
        made(jobs[0], prompt)
    for overrides, share, psnr in SETTINGS:
        jobs.append(job_of(tmp_path, *overrides))
        for prompt in PROMPTS:
            value = psnr + ("red" in prompt) + 5 * (prompt == STILL and "method=flowcache_fast" in overrides)
            made(jobs[-1], prompt, share, metrics={"psnr": value})
    return jobs


@pytest.fixture
def split(jobs) -> pd.DataFrame:
    videos, _ = reuse_videos(collect(jobs[0]), jobs[0], jobs, CURVES, "field")
    return by_motion(videos, CURVES)


def test_captions_say_the_class():
    assert [motion_class(prompt) for prompt in (STILL, MOVING, BOUNCING)] == ["staying still", "moving on", "bouncing"]
    assert motion_class("a cat sleeps") is None
    rich = [f"a red circle {word} on a striped grey background" for word in ("staying still", "bouncing")]
    assert list(map(motion_class, rich)) == ["staying still", "bouncing"]
    assert [motion_class(f"{prompt} panning left") for prompt in rich] == ["moving on", "bouncing"]
    assert motion_class("a red circle and a blue square racing up on a grey background") == "moving on"


def test_means_and_differences_by_hand(split):
    rows = split.set_index(["motion", "compute_left", "method"])
    assert list(rows.index[:3]) == [
        ("staying still", 0.25, "flowcache"),
        ("staying still", 0.25, "flowcast"),
        ("staying still", 0.5, "every_k"),
    ]
    cache = {0.25: 32.0, 0.5: 42.0}  # between 30 dB at 0.2 and 46 dB at 0.6
    for share, cast in ((0.25, 40.0), (0.5, 50.0)):
        still, moving = rows.loc[("staying still", share, "flowcache")], rows.loc[("moving on", share, "flowcache")]
        assert (still["n"], moving["n"]) == (1, 6)
        assert still["db"] == pytest.approx(cache[share] + 6)
        assert moving["db"] == pytest.approx(cache[share] + 3 / 6)
        assert still["flowcast_more"] == pytest.approx(cast - cache[share] - 5)
        assert moving["flowcast_more"] == pytest.approx(cast - cache[share])
        assert math.isnan(still["flowcast_more_low"])  # of one video there is no interval
        assert moving["flowcast_more_low"] == pytest.approx(cast - cache[share]) == moving["flowcast_more_high"]
        assert math.isnan(moving["flowcache_more"])  # itself
        assert rows.loc[("bouncing", share, "flowcast"), "flowcache_more"] == pytest.approx(cache[share] - cast)
    assert rows.loc[("moving on", 0.5, "every_k"), "db"] == pytest.approx(35.5)
    assert ("moving on", 0.25, "every_k") not in rows.index  # its settings leave more


def test_the_table_tells_method_by_method(split):
    text = markdown(table(split, CURVES, "vanilla", "made"))
    assert "| motion | compute left | method | n | PSNR dB | flowcast has more | flowcache has more |" in text
    assert "| staying still | 0.25 | flowcast | 1 | 41.00 | - | -3.00 (n 1) |" in text
    assert (
        "| moving on | 0.5 | every_k | 6 | 35.50 ± 0.57 | +15.00 (+15.00 to +15.00) | +7.00 (+7.00 to +7.00) |" in text
    )


def test_prompts_without_a_motion_have_no_table(jobs):
    videos, _ = reuse_videos(collect(jobs[0]), jobs[0], jobs, CURVES, "field")
    assert by_motion(videos.assign(prompt="a cat sleeps"), CURVES).empty


def test_the_field_has_it_beside_its_curves(jobs, tmp_path, monkeypatch):
    assert all(curves.by_motion for curves in curves_of(read_experiment("field", [])))
    assert not any(curves.by_motion for curves in curves_of(read_experiment("placement", [])))
    file = {"baseline": "vanilla", "curves": {**vars(CURVES), "quality": "psnr"}}
    monkeypatch.setattr(figures, "jobs_of", lambda name, arguments: (jobs, file))
    assert figures.main(["experiment=field", f"output_dir={tmp_path}"]) == 0
    written = {path.name for path in (tmp_path / "tables").iterdir() if "motion" in path.name}
    assert written == {f"magi_embedded_field_motion.{kind}" for kind in ("csv", "md", "tex")}
