"""Tables and figures of ablations and long videos come from records alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.lines import Line2D

from eval.scenes import render, scene_of
from eval.video_io import write_lossless
from experiments.job.errors import BadInput
from experiments.job.experiment import jobs_of
from experiments.records import store_of
from experiments.run.runner import Runner
from experiments.show import long_video
from experiments.show.ablations import draw, main, settings_frame, table
from experiments.show.results import markdown
from experiments.show.style import colour_and_marker
from tests.experiments.made_records import made

THRESHOLD = {"x": "reuse.threshold", "label": "reuse threshold", "lines": {"method": "method"}}


@pytest.fixture
def jobs(small_job):
    thresholds = [small_job(f"reuse.threshold={t}", "reuse.warmup_steps=2", "num_prompts=2") for t in (0, 0.3, 0.6)]
    return [small_job("method=vanilla", "num_prompts=2"), *thresholds]


def test_one_row_a_setting_told_apart_by_what_varies(jobs):
    for job in jobs[:3]:  # the last one has no records: no row
        Runner(job).run()
    frame, told_by = settings_frame(jobs)
    assert told_by == ["method", "reuse.threshold"]
    assert list(frame["n"]) == [2, 2, 2]
    assert frame["flops_share"].iloc[1] == 1 > frame["flops_share"].iloc[2]
    lines = markdown(table(frame, told_by, "Threshold", "vanilla", "here")).splitlines()
    assert lines[2].startswith("| method | reuse.threshold | n | compute left | PSNR dB | identical |")
    assert [line.split(" | ")[:3] for line in lines[4:]] == [
        ["| vanilla", "-", "2"],
        ["| flowcache_fast", "0", "2"],
        ["| flowcache_fast", "0.3", "2"],
    ]
    assert " ± " in lines[6]
    assert "| 2 | 1.000 ± 0.000 | - | 2 |" in lines[5]
    refresh = {"x": "refresh", "label": "clean keys", "lines": {"reuse.threshold": "threshold"}}
    figure = draw(frame.assign(refresh=[True, True, False]), refresh, "Refresh", "vanilla")
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["no"]  # all that has a PSNR
    figure = draw(frame, THRESHOLD, "Threshold", "vanilla")
    assert [len(panel.lines[0].get_xdata()) for panel in figure.axes] == [1, 1]  # the identical one has no PSNR


def settings(*rows: tuple[str, str | None, float]) -> pd.DataFrame:
    """Of methods, KV budgets and SSIMs."""
    columns = ["method", "kv.budget", "ssim"]
    return pd.DataFrame(rows, columns=columns).assign(psnr=40.0, psnr_ci95=5.0, ssim_ci95=0.02, n=8)


def test_methods_have_their_families_colours_and_budgets_their_line_styles():
    rows = [(method, budget, 0.9) for method in ("vanilla_kv", "flowcache_fast") for budget in (None, "1 chunk")]
    lines = {"method": "method", "kv.budget": "KV budget"}
    shown = {"x": "kv.budget", "label": "KV budget, chunks kept", "lines": lines, "none": "all"}
    figure = draw(settings(*rows), shown, "Budget", "vanilla")
    containers = figure.axes[0].containers
    curves = [drawn.lines[0] for drawn in containers]
    colours, styles = (tuple(map(of, curves)) for of in (Line2D.get_color, Line2D.get_linestyle))
    kv, fast = (colour_and_marker(name)[0] for name in ("vanilla_kv", "flowcache_fast"))
    assert colours == (kv, kv, fast, fast)
    assert styles == ("-", "--") * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "vanilla_kv, all",
        "vanilla_kv, 1 chunk",
        "flowcache_fast, all",
        "flowcache_fast, 1 chunk",
    ]
    assert figure.legends[0].get_title().get_text() == "method, KV budget"
    assert figure.axes[1].get_xlabel() == "KV budget, chunks kept"
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["all", "1 chunk"]


def test_drawn_intervals_end_where_the_metric_does():
    shown = {"x": "kv.budget", "label": "KV budget", "lines": {"method": "method"}}
    frame = settings(("flowcache_fast", "1 chunk", 0.99), ("flowcache_fast", "2 chunks", 0.9))
    _, ssim = draw(frame, shown, "Budget", "vanilla").axes
    ends = [segment[:, 1].tolist() for segment in ssim.containers[0].lines[2][0].get_segments()]
    assert ends == [pytest.approx([0.97, 1.0]), pytest.approx([0.88, 0.92])]
    _, ssim = draw(frame.assign(psnr_ci95=float("nan"), ssim_ci95=float("nan")), shown, "Budget", "vanilla").axes
    bars = ssim.containers[0].lines[2][0].get_segments()  # too few values: none is drawn
    assert not any(len(bar) and np.isfinite(bar).all() for bar in bars)


def test_nothing_to_compare_is_said(jobs):
    Runner(jobs[0]).run()
    frame, _ = settings_frame(jobs)
    with pytest.raises(BadInput, match=r"no video but vanilla's.*python -m experiments\.sweep"):
        draw(frame, THRESHOLD, "Threshold", "vanilla")


def test_no_budget_is_told_from_a_budget(small_job):
    jobs = [small_job("method=vanilla", f"kv.budget={budget}") for budget in ("null", "1 chunk")]
    for job in jobs:
        Runner(job).run()
    frame, told_by = settings_frame(jobs)
    assert told_by == ["method", "kv.budget"]
    rows = markdown(table(frame, told_by, "Budget", "vanilla", "here")).splitlines()[4:6]
    assert [row.split(" | ")[:2] for row in rows] == [["| vanilla", "-"], ["| vanilla", "1 chunk"]]
    # What every setting of a method shares tells nothing of them.
    rows = markdown(table(frame, [*told_by, "near_clean"], "Budget", "vanilla", "here")).splitlines()[4:6]
    assert [row.split(" | ")[1:3] for row in rows] == [["-", "-"], ["1 chunk", "-"]]


def test_a_metric_that_could_not_be_had_is_told_with_its_reason_and_counts_are_each_ones_own(jobs):
    for job, share in zip(jobs[:3], (1.0, 0.8, 0.5), strict=True):
        for place, prompt in enumerate(job.prompts):
            psnr = "inf" if place == 0 else 30.0
            compared = {"metrics": {"psnr": psnr, "lpips": None}, "notes": {"lpips": "no weights"}}
            made(job, prompt, share, **(compared if job is not jobs[0] else {}))
    frame, told_by = settings_frame(jobs)
    lines = markdown(table(frame, told_by, "Threshold", "vanilla", "here")).splitlines()
    headings, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[2], *lines[4:7])]
    assert [row[headings.index("LPIPS")] for row in rows] == ["-", "n/a", "n/a"]
    assert [row[headings.index("PSNR dB")] for row in rows] == ["-", "30.00 (n 1)", "30.00 (n 1)"]
    assert lines[-1] == "- LPIPS n/a: no weights (flowcache_fast 0, flowcache_fast 0.3)"
    title = draw(frame.assign(ssim=0.9, ssim_ci95=0.1), THRESHOLD, "Threshold", "vanilla").axes[0].get_title()
    assert title.endswith("n = 2;\nPSNR without identical videos, n = 1 or more)")


def test_without_records_it_says_how_to_make_them(jobs):
    with pytest.raises(BadInput, match=r"python -m experiments\.sweep"):
        settings_frame(jobs)


def test_an_experiment_that_is_no_ablation_is_refused(capsys):
    assert main(["experiment=main_table"]) == 2
    assert "is no ablation" in capsys.readouterr().err


def test_a_long_video_is_told_chunk_by_chunk(small_job):
    long = ["setting.num_frames=192", "num_prompts=1"]
    budgets = [small_job(f"kv.budget={budget}", "reuse.warmup_steps=2", *long) for budget in ("2 chunks", "null")]
    jobs = [small_job("method=vanilla", *long), *budgets]
    with pytest.raises(BadInput, match="experiment=long_video"):
        long_video.chunk_frame(jobs)
    (record,), (compressing,) = (Runner(job).run() for job in jobs[:2])
    assert "compression" not in record.sections_s
    assert 0 < compressing.sections_s["compression"] < compressing.latency_s
    chunks = long_video.chunk_frame(jobs)
    assert list(chunks["setting"]) == ["vanilla"] * 8 + ["flowcache_fast, kv.budget 2 chunks"] * 8
    vanilla, compressed = (group for _, group in chunks.groupby("setting", sort=False))
    assert vanilla["kv_mib"].is_monotonic_increasing
    assert (vanilla["psnr"] == 60).all()
    assert compressed["kv_mib"].max() < vanilla["kv_mib"].max()
    assert (chunks["seconds"].dropna() > 0).all()
    table = long_video.table(chunks, "A long video", "vanilla", "here")
    assert list(table.data["setting"]) == ["vanilla", "flowcache_fast, kv.budget 2 chunks"]
    late = compressed[compressed["chunk"] > 7 - long_video.NUM_COMPARED]
    assert table.data["kv_mib_late"].iloc[1] == late["kv_mib"].max()
    assert table.data["seconds_early"].iloc[0] == pytest.approx(vanilla.loc[vanilla["chunk"] > 0, "seconds"].median())
    assert len(long_video.draw(chunks, "A long video", "vanilla").axes) == 5
    memory = long_video.kv_frame(jobs)
    assert memory["kv_mib"].tolist() == chunks["kv_mib"].tolist()
    figure = long_video.draw_memory(memory, "here")
    (axes,), (legend,) = figure.axes, figure.legends
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0  # below, so that it covers no curve
    looks = [colour_and_marker(name)[0] for name in ("vanilla", "flowcache_fast")]
    assert [line.get_color() for line in axes.lines] == looks
    assert [list(line.get_xdata()) for line in axes.lines] == [list(range(1, 9))] * 2


def test_a_window_with_a_sink_keeps_a_long_video_flat(small_job):
    """Causal Wan, ten times as long as what its window holds."""
    loader = "model.loader=tests.models.wan_tiny.windowed"
    long = [loader, "setting.num_frames=345", "setting.num_steps=2", "num_prompts=1", "method=vanilla"]
    job = small_job(*long)
    (record,) = Runner(job).run()
    chunks = long_video.chunk_frame([job])
    assert list(chunks["chunk"]) == list(range(29))
    window = record.kv_bytes_used_peak / 2**20
    assert record.kv_bytes_used_peak == record.kv_bytes_allocated
    assert chunks["kv_mib"].tolist() == pytest.approx([window / 3, window * 2 / 3, *[window] * 27])
    assert not chunks["caption_right"].any()  # random weights show no shape
    table = long_video.table(chunks, "A long video", "vanilla", "here")
    row = table.data.iloc[0]
    assert (row["kv_mib_growth"], row["kv_mib_early"]) == (1, row["kv_mib_late"])
    assert 0.2 < row["seconds_growth"] < 5  # one video on a machine that may be busy
    assert "KV MiB, late / early | seconds a chunk, late / early" in markdown(table)
    # A clip that leaves its caption after 12 chunks, the first of 9 frames and each other of 12.
    scenes, parts = (scene_of(record.prompt), scene_of("a blue square staying still on a dark background")), (141, 204)
    clip = [render(scene, n, torch.Generator().manual_seed(0)) for scene, n in zip(scenes, parts, strict=True)]
    write_lossless(store_of(job).video_path(record.key), torch.cat(clip).permute(0, 2, 3, 1).numpy(), job.fps)
    assert long_video.chunk_frame([job])["caption_right"].tolist() == [True] * 12 + [False] * 17


def test_settings_of_one_method_differ_in_their_line_styles():
    names = ["vanilla", "mine", "mine, kv.budget 2 chunks", "mine, kv.budget 1 chunk"]
    rows = [{"setting": name, "prompt": "a", "chunk": chunk, "kv_mib": 1.0} for name in names for chunk in range(9)]
    (axes,) = long_video.draw_memory(pd.DataFrame(rows), "here").axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--", ":"]
    assert [line.get_label() for line in axes.lines] == names
    assert len({line.get_color() for line in axes.lines[1:]}) == 1


def test_the_length_of_a_long_video_is_the_models():
    jobs, _ = jobs_of("long_video", ["model=skyreels"])
    assert {job.num_frames for job in jobs} == {1777}
    jobs, _ = jobs_of("long_video", ["model=skyreels", "setting.num_frames=177"])
    assert {job.num_frames for job in jobs} == {177}


def test_intervals_of_long_videos_are_over_prompts():
    chunks = pd.DataFrame(
        [
            {"setting": "vanilla", "prompt": prompt, "chunk": chunk, "kv_mib": level + chunk, "psnr": 60.0}
            | {"seconds": 1.0, "caption_right": chunk % 2 == 0, "seam": 1.0}
            for prompt, level in (("a", 1.0), ("b", 3.0))
            for chunk in range(20)
        ]
    )
    (row,) = long_video.ends_frame(chunks).to_dict("records")
    assert (row["n"], row["kv_mib_early"], row["kv_mib_late"]) == (2, 2 + 8, 2 + 19)
    assert (row["kv_mib_growth"], row["seconds_growth"], row["seconds_growth_n"]) == ((20 / 9 + 22 / 11) / 2, 1, 2)
    assert row["kv_mib_early_ci95"] == pytest.approx(12.706205)  # t at 1 degree of freedom, standard error 1
    ends = ["caption_right_early", "caption_right_early_low", "caption_right_early_high", "caption_right_early_n"]
    assert [row[end] for end in ends] == [0.5, 0.5, 0.5, 2]
    uneven = chunks.assign(caption_right=(chunks["prompt"] == "a") | (chunks["chunk"] % 2 == 0))
    assert "| 75% (50% to 100%) |" in markdown(long_video.table(uneven, "A long video", "vanilla", "here"))
