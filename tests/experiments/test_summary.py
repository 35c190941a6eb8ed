"""What a finished job prints: every figure with its interval, narrow enough for a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.records import store_of
from experiments.show.summary import missing, print_summary, summarise
from tests.experiments.made_records import job_of, made


def records(tmp_path, num_timed: int):
    job = job_of(tmp_path, "method=flowcache_fast", "num_prompts=8")
    caption = dict.fromkeys(("right", "colour_right", "shape_right", "motion_right"), True)
    return job, [
        made(
            job,
            prompt,
            0.5 + place / 100,
            latency_s=10.0 + place,
            chunk_latency_s=[2.0 + place / 2, 10.0 + place],
            baseline_latency_s=20.0 + 3 * place if place < num_timed else None,
            sections_s={"policy": 0.1 + place / 100, "compression": 0.2},
            metrics={"psnr": 40.0 + place, "ssim": 0.9 + place / 1000, "lpips": None, "lpips_vgg": place / 100},
            notes={"lpips": "no weights"},
            caption={**caption, "seam_ratio": 1.2 + place / 10, "position_jump_pixels": place if place < 7 else None},
            kv_bytes_used_peak=2**20 * place,
        )
        for place, prompt in enumerate(job.prompts)
    ]


def printed(tmp_path, num_timed: int) -> dict[str, tuple[str, str]]:
    """Value and spread by figure."""
    job, made_here = records(tmp_path, num_timed)
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(job, made_here, store_of(job), console)
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert all(figure for figure, _, _ in rows), "a cell takes two lines"
    return {figure: (value, spread) for figure, value, spread in rows}


def test_every_printed_figure_has_its_interval(tmp_path):
    for figure, (value, spread) in printed(tmp_path, 8).items():
        assert "95 %" in spread, f"{figure}: {value} without an interval"


def test_the_first_chunk_and_the_frames_a_second_are_of_timed_videos(tmp_path):
    job, made_here = records(tmp_path, 8)
    assert job.num_frames == 192
    assert [made_here[2].latency_first_chunk_s, made_here[2].fps] == [3.0, 16.0]
    shown = printed(tmp_path, 8)
    assert shown["latency of the first chunk, s (median)"][0] == "3.75"
    assert shown["frames generated a second, fps (median)"][0] == "14.2"  # the mean of 192 / 13 and 192 / 14
    for record in made_here[3:]:
        record.latency_s, record.chunk_latency_s = None, []
    assert [made_here[3].latency_first_chunk_s, made_here[3].fps] == [None, None]
    summary = summarise(made_here)
    assert (summary["latency_first_chunk_s"], summary["latency_first_chunk_s_n"]) == (2.5, 3)
    assert (summary["fps"], summary["fps_n"]) == (192 / 11, 3)
    assert not {"latency_first_chunk_s", "fps"} & summarise(made_here[3:]).keys()


def test_a_metric_beside_the_usual_ones_is_printed(tmp_path):
    assert printed(tmp_path, 8)["LPIPS (vgg)"][0] == "0.0350"


def test_figures_over_fewer_videos_say_so_and_few_have_no_interval(tmp_path):
    spreads = {figure: spread for figure, (_, spread) in printed(tmp_path, 5).items()}
    assert spreads["speed-up (median of pairs)"] == "(5 pairs)"
    assert spreads["efficiency (speed-up x compute left)"] == "(n 5)"
    assert spreads["jump at chunk borders, pixels"].endswith("(95 %, n 7)")
    assert spreads["seam ratio at chunk borders"].endswith("(95 %)")


def test_missing_metrics_have_no_figure_but_a_reason(tmp_path):
    _, made_here = records(tmp_path, 0)
    summary = summarise(made_here)
    assert "lpips" not in summary
    assert (summary["psnr_n"], summary["position_jump_pixels_n"]) == (8, 7)
    assert summary["pflops"] == pytest.approx(0.000535)
    assert missing(made_here) == {"lpips": "no weights"}


def summary_of(tmp_path, num_prompts: int, *overrides: str) -> str:
    job = job_of(tmp_path, f"num_prompts={num_prompts}", *overrides)
    metrics = {} if job.is_baseline else {"psnr": 18.5, "ssim": 0.8}
    times = {"latency_s": 5.0, "baseline_latency_s": None if job.is_baseline else 10.0}
    records = [made(job, prompt, 0.348, metrics=metrics, **times) for prompt in job.prompts]
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(job, records, store_of(job), console)
    return console.export_text()


def test_one_is_singular_and_compute_has_the_unit_that_fits(tmp_path):
    printed = summary_of(tmp_path, 1, "method=flowcache_fast")
    assert "magi / embedded / flowcache_fast: 1 video, measured here" in printed
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    assert ["speed-up (median of pairs)", "2.00x", "(1 pair)"] in cells
    assert ["executed compute, GFLOPs a video", "348", "(n 1)"] in cells
    printed = summary_of(tmp_path, 2, "method=flowcache_fast")
    assert "flowcache_fast: 2 videos, measured here" in printed
    assert "(2 pairs)" in printed


@pytest.mark.parametrize(
    ("overrides", "flagged", "told"),
    [
        (["model=skyreels", "method=flowcache_fast"], True, "baseline=vanilla_kv shows that"),
        (["model=skyreels", "method=vanilla_kv"], True, "baseline=vanilla_kv shows that"),
        (["model=skyreels", "method=teacache_fast"], False, None),  # as bidirectional as vanilla
        (["model=skyreels", "method=flowcache_fast", "baseline=vanilla_kv"], False, None),
        (["model=skyreels", "method=flowcache_fast", "baseline=vanilla_causal"], False, None),
        (["model=skyreels", "method=teacache_fast", "baseline=vanilla_kv"], True, "baseline=vanilla shows that"),
        (["model=skyreels", "method=vanilla"], False, None),
        (["method=flowcache_fast"], False, None),  # MAGI-1's vanilla is block-causal
    ],
)
def test_a_baseline_that_is_another_video_is_told_beside_the_figure(tmp_path, overrides, flagged, told):
    printed = summary_of(tmp_path, 2, *overrides)
    assert ("PSNR, dB †" in printed) == ("SSIM †" in printed) == flagged
    assert ("† another video from the start" in printed) == flagged
    assert told is None or told in " ".join(printed.split())


@pytest.mark.parametrize(
    ("flops", "unit", "value"),
    [(3.48e11, "GFLOPs", "348"), (4.5e12, "TFLOPs", "4.5"), (3.06e17, "PFLOPs", "306"), (2e6, "MFLOPs", "2")],
)
def test_compute_is_in_a_unit_that_people_read(tmp_path, flops, unit, value):
    job, made_here = records(tmp_path, 8)
    for place, record in enumerate(made_here):
        record.flops = int(flops * (1 + (place - 3.5) / 1000))
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(job, made_here, store_of(job), console)
    (line,) = (line for line in console.export_text().splitlines() if "executed compute" in line)
    title, number, spread = (cell.strip() for cell in line.strip("│").split("│"))
    assert (title, number) == (f"executed compute, {unit} a video", value)
    assert float(spread[1:].split()[0]) == pytest.approx(float(value) * 0.00205, rel=0.01)  # of one size with the mean


def test_times_of_a_busy_machine_are_marked(tmp_path):
    assert not any("*" in figure for figure in printed(tmp_path, 8))
    job, made_here = records(tmp_path, 8)
    for record, load in zip(made_here, (0.5, 2.0, 2.1, 8.26), strict=False):
        record.environment = {"load_average_1min": load, "cores": 2}
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(job, made_here, store_of(job), console)
    lines = console.export_text().splitlines()
    marked = [line.split("*")[0].strip("│ ") for line in lines if "*" in line and line.startswith("│")]
    assert marked == [
        "latency, s (median)",
        "latency of the first chunk, s (median)",
        "frames generated a second, fps (median)",
        "speed-up (median of pairs)",
        "efficiency (speed-up x compute left)",
        "time spent deciding",
        "time spent compressing",
    ]
    note = "* the machine was busy for 2 of 8 videos (load average 2.1 to 8.3, cores 2): their times are too long"
    assert note in " ".join(line.strip() for line in lines)
