"""A method that is added in conf/ is in every table, figure, report, experiment and command that takes methods."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

from eval.video_io import write_lossless
from experiments.job.experiment import jobs_of
from experiments.job.groups import CONF
from experiments.records import RecordStore, new_record
from experiments.records.collect import collect
from experiments.show import figures, report, tables
from experiments.show.figures import Subject, reuse_of
from experiments.show.methods import left_out
from experiments.show.pareto import pareto_points
from experiments.show.results import Destination
from experiments.show.reuse_curve import reuse_points
from experiments.show.style import STYLE
from experiments.show.tables import main_table
from experiments.studies import tune
from tests.experiments.made_records import job_of, made, trace

PROMPTS = "prompts=[a,b,c,d,e,f,g,h]"
ADDED = {  # each a copy of another method and its policy, but for one option
    "zebra_slow": ("every_k", "every_k", "every: 2", "every: 7"),
    "zebra_fast": ("flowcache_fast", "chunkwise", "threshold: 0.015", "threshold: 0.33"),
}


@pytest.fixture
def added(monkeypatch, tmp_path):
    """A copy of conf/ with two more methods, each with a policy of its own."""
    conf = shutil.copytree(CONF, tmp_path / "conf")
    for name, (method, policy, option, other) in ADDED.items():
        for group, like, replaced in (
            ("method", method, {f"override /reuse: {policy}\n": f"override /reuse: {name}\n"}),
            ("reuse", policy, {f"{option} ": f"{other} "}),
        ):
            text = (conf / group / f"{like}.yaml").read_text(encoding="utf-8")
            for old, new in {f"name: {like}\n": f"name: {name}\n", **replaced}.items():
                assert old in text
                text = text.replace(old, new)
            (conf / group / f"{name}.yaml").write_text(text, encoding="utf-8")
    for place in ("groups", "compose"):
        monkeypatch.setattr(f"experiments.job.{place}.CONF", conf)


@pytest.fixture
def output_dir(added, tmp_path):
    """With records, videos and traces of vanilla, of a known method at two settings, and of the added ones."""
    output_dir = tmp_path / "outputs"
    store = RecordStore(output_dir)
    for share, name, *overrides in (
        (1.0, "vanilla"),
        (0.5, "flowcache_fast"),
        (0.3, "flowcache_fast", "reuse.threshold=0.025"),
        (0.6, "zebra_slow"),
        (0.4, "zebra_fast"),
    ):
        job = job_of(output_dir, PROMPTS, f"method={name}", *overrides)
        metrics = {} if name == "vanilla" else {"psnr": 40.0, "ssim": 0.9}
        for prompt in job.prompts:
            record = made(job, prompt, share, metrics=metrics, latency_s=2.0, chunk_latency_s=[1.0, 2.0])
            write_lossless(store.video_path(record.key), np.zeros((48, 64, 64, 3), np.uint8), 24)
            trace().to_parquet(store.trace_path(record.key))
            store.save(record)
    return output_dir


def test_the_main_table_has_it(output_dir):
    assert tables.main([PROMPTS, f"output_dir={output_dir}"]) == 0
    rows = pd.read_csv(output_dir / "tables" / "magi_embedded_main.csv").set_index("method")
    assert list(rows.index) == ["vanilla", "flowcache_fast", *ADDED]
    assert rows["compute_left"].tolist() == [1.0, 0.5, 0.6, 0.4]
    assert rows["options"].tolist()[1:] == ["reuse.threshold 0.015", "reuse.every 7", "reuse.threshold 0.33"]
    paired = pd.read_csv(output_dir / "tables" / "magi_embedded_main_paired.csv")
    assert ("zebra_fast", "zebra_slow") in set(zip(paired["method"], paired["against"], strict=True))


def test_the_report_has_it(output_dir):
    assert report.main([PROMPTS, f"output_dir={output_dir}"]) == 0
    page = (output_dir / "report" / "magi_embedded" / "index.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))
    assert data["methods"] == ["vanilla", "flowcache_fast", *ADDED]
    assert ADDED.keys() <= data["clips"][0]["takes"].keys()
    assert {point["method"] for point in data["plot"]["qualities"][0]["points"]} == {"flowcache_fast", *ADDED}
    slow, fast, known = (data["looks"][name] for name in (*ADDED, "flowcache_fast"))
    assert (slow["colour"], slow["marker"]) == (fast["colour"], fast["marker"]) != (known["colour"], known["marker"])
    assert (slow["hollow"], fast["hollow"]) == (True, False)


def test_figures_have_it(output_dir, monkeypatch):
    for key in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(STYLE, key, 40)
    drawn: dict[str, list[str]] = {}

    def save_figure(self, figure, stem, source):
        drawn[stem] = [text.get_text() for text in figure.findobj(Text)]
        plt.close(figure)

    monkeypatch.setattr(Destination, "save_figure", save_figure)
    assert figures.main([PROMPTS, f"output_dir={output_dir}"]) == 0
    for name in ("frames", "reuse_map", "pareto", "reuse_curve"):
        assert any("zebra" in text for text in drawn[f"magi_embedded_{name}"]), name


def test_curves_and_the_pareto_front_have_its_defaults(output_dir):
    reuse = reuse_of(Subject(job_of(output_dir, PROMPTS), (), Destination(output_dir)))
    points = reuse_points(reuse.videos)
    assert points[["family", "told", "compute_left"]].values.tolist() == [
        ["flowcache", "reuse.threshold 0.025", 0.3],
        ["flowcache", "reuse.threshold 0.015", 0.5],
        ["zebra", "zebra_fast", 0.4],
        ["zebra", "zebra_slow", 0.6],
    ]
    assert reuse.notes == []
    assert set(pareto_points(reuse.videos)["family"]) == {"flowcache", "zebra"}


def test_experiments_of_every_method_run_it(added):
    for experiment in ("main_table", "vbench_full"):
        assert ADDED.keys() <= {job.method_name for job in jobs_of(experiment, ["num_prompts=1"])[0]}


def test_it_can_be_tuned(added, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        tune, "executed_flops", lambda job, model, method: 1 / (1 + 9 * getattr(method.reuse, "threshold", 0))
    )
    assert tune.main(["method=zebra_fast", "share=0.5", "num_prompts=1", f"output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("zebra_fast: reuse.threshold 0.1")


def test_a_method_that_lacks_prompts_is_left_out_of_the_curves_and_that_is_said(output_dir):
    store = RecordStore(output_dir)
    for record in list(store.all()):
        if record.method.startswith("zebra") and record.prompt != "a":
            shutil.rmtree(store.run_path(record.key))
    reuse = reuse_of(Subject(job_of(output_dir, PROMPTS), (), Destination(output_dir)))
    assert set(reuse.videos["method"]) == {"flowcache_fast"}
    assert reuse.videos["prompt"].nunique() == 8
    assert reuse.notes == ["Left out, for lack of some of the 8 prompts that all others have: zebra"]


def test_a_video_of_the_same_options_counts_for_every_name_of_them(tmp_path):
    """flowcache_slow's default is a point of the threshold's ablation, made under the other name, and made once."""
    made(job_of(tmp_path, "method=vanilla"), "a")
    slow = job_of(tmp_path, "method=flowcache_slow")
    record = made(job_of(tmp_path, "method=flowcache_fast", f"reuse.threshold={slow.method.reuse.threshold}"), "a", 0.8)
    assert record.key == new_record(slow, slow.method_name, slow.method, "a").key
    assert list(main_table(collect(slow), slow).index) == ["vanilla", "flowcache_slow"]


def test_what_is_at_no_methods_defaults_is_said(tmp_path):
    made(job_of(tmp_path, "method=vanilla"), "a")
    for prompt in "ab":
        made(job_of(tmp_path, "method=every_k", "reuse.every=7"), prompt, 0.2)
    job = job_of(tmp_path)
    frame = collect(job)
    shown = main_table(frame, job).index
    assert list(shown) == ["vanilla"]
    assert left_out(frame, shown) == ["Not shown, for no video of theirs is at a method's default options: every_k (2)"]
    assert left_out(frame, ["vanilla", "every_k"]) == []
