"""Figures from records and traces that no model was run for: what they show, and what is said where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from eval.video_io import write_lossless
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.records import RecordStore
from experiments.show import figures
from experiments.show.figures import Subject, reuse_of
from experiments.show.frame_strips import common_gain, difference, draw_frames, strip
from experiments.show.pareto import draw_pareto, on_front, pareto_points
from experiments.show.results import Destination
from experiments.show.reuse_curve import draw_reuse_curve, draw_warmup_sweep, reuse_points
from experiments.show.reuse_map import action_map, draw_reuse_map
from experiments.show.style import COLUMN_WIDTH_IN, COMPUTED, FORECAST, HELD, REUSED, STYLE, colour_and_marker
from experiments.studies import l1_rel
from experiments.studies.l1_rel import draw_process, draw_steps
from tests.experiments.made_records import VANILLA_FLOPS, job_of, made, trace

PROMPTS = ("a", "b")
SETTINGS = (  # overrides, compute left, PSNR, SSIM
    (("method=flowcache_fast", "reuse.threshold=0.025"), 0.7, 45.0, 0.97),
    (("method=flowcache_fast", "reuse.threshold=0.1"), 0.4, 35.0, 0.90),
    (("method=flowcache_fast", "reuse.threshold=0.1", "reuse.warmup_steps=12"), 0.5, 36.0, 0.96),
    (("method=teacache_fast", "reuse.threshold=0.08"), 0.5, 33.0, 0.89),
    (("method=every_k", "reuse.every=2"), 0.55, 50.0, 0.95),
)
SKYREELS_SETTINGS = (
    (("method=flowcache_fast", "reuse.threshold=0.04", "reuse.warmup_steps=5"), 0.7, 45.0, 0.97),
    (("method=every_k", "reuse.every=2", "reuse.warmup_steps=5"), 0.55, 50.0, 0.95),
)


@pytest.fixture
def job(tmp_path) -> Job:
    """With records of vanilla and of five settings."""
    for place, prompt in enumerate(PROMPTS):
        made(job_of(tmp_path, "method=vanilla"), prompt)
        for overrides, share, psnr, ssim in SETTINGS:
            made(job_of(tmp_path, *overrides), prompt, share, metrics={"psnr": psnr + place, "ssim": ssim})
    return job_of(tmp_path, "prompts=[a,b]")


@pytest.fixture
def reuse(job):
    """What the reuse curve and the Pareto figure are made of."""
    return reuse_of(Subject(job, (), Destination(job.output_dir)))


def add_files(job: Job, seed: int = 0) -> None:
    """A video and a trace for every record of the store."""
    rng, store = np.random.default_rng(seed), RecordStore(job.output_dir)
    for record in store.all():
        write_lossless(store.video_path(record.key), rng.integers(0, 256, (48, 64, 64, 3), np.uint8), 24)
        reused = () if record.method == "vanilla" else ((0, 2), (1, 3))
        store.trace_path(record.key).parent.mkdir(exist_ok=True)
        trace(reused=reused).to_parquet(store.trace_path(record.key))
        record.chunk_latency_s = [1.0, 2.0]
        store.save(record)


def test_the_map_has_the_traces_actions():
    actions = action_map(trace(reused=((0, 2), (1, 3))))
    assert actions.tolist() == [[0, 0, 1, 0, -1, -1], [-1, -1, 0, 0, 0, 1]]
    figure = draw_reuse_map({"vanilla": trace(), "mine": trace(reused=((0, 2), (1, 3)))}, "a prompt")
    assert [axes.get_title("left") for axes in figure.axes] == [
        "vanilla: 100% of chunk steps computed",
        "mine: 75% of chunk steps computed",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["computed", "reused"]  # none held back
    assert figure.axes[0].yaxis_inverted()  # the first chunk on top
    assert figure.get_figwidth() == COLUMN_WIDTH_IN


def test_the_map_shows_forecasts_in_a_colour_of_their_own():
    mine = trace(reused=((0, 2),), forecast=((1, 2), (1, 3)))
    assert action_map(mine).tolist() == [[0, 0, 1, 0, -1, -1], [-1, -1, 0, 0, 2, 2]]
    figure = draw_reuse_map({"mine": mine}, "a prompt")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["computed", "reused", "forecast"]
    colours = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert [colour.upper() for colour in colours] == [COMPUTED, REUSED, FORECAST]
    assert len({COMPUTED, REUSED, FORECAST, HELD}) == 4


def test_the_front_is_what_nothing_dominates():
    points = pd.DataFrame({"cost": [1, 2, 2, 3, 4], "quality": [5.0, 5.0, 7.0, 6.0, 9.0]})
    assert on_front(points["cost"], points["quality"]).tolist() == [True, False, True, False, True]
    alike = pd.DataFrame({"cost": [1, 1], "quality": [5.0, 5.0]})
    assert on_front(alike["cost"], alike["quality"]).tolist() == [True, True]


def test_pareto_shows_every_setting_and_fills_the_front(reuse):
    points = pareto_points(reuse.videos)
    assert points["n"].tolist() == [2] * len(SETTINGS)
    assert points["flops"].tolist() == pytest.approx([share * VANILLA_FLOPS for share in (0.4, 0.5, 0.5, 0.55, 0.7)])
    front = {
        quality: set(points.loc[points[f"{quality}_front"], "flops"] / VANILLA_FLOPS) for quality in ("psnr", "ssim")
    }
    assert front == {"psnr": {0.4, 0.5, 0.55}, "ssim": {0.4, 0.5, 0.7}}
    figure = draw_pareto(points, "vanilla", VANILLA_FLOPS, "magi, embedded")
    psnr, ssim = figure.axes
    assert ssim.get_xlabel() == "executed TFLOPs a video (mean)"
    assert (psnr.get_ylabel(), ssim.get_ylabel()) == ("PSNR to vanilla, dB", "SSIM to vanilla")
    colours = {to_hex(line.get_color()) for line in psnr.lines}
    assert {colour_and_marker(name)[0].lower() for name in ("flowcache", "teacache", "every_k")} <= colours


def test_curves_have_a_line_a_method_and_a_warm_up(reuse):
    points = reuse_points(reuse.videos)
    curve = draw_reuse_curve(points, reuse.curves, "vanilla", "here")
    (axes,), (legend,) = curve.axes, curve.legends
    labels = [text.get_text() for text in legend.get_texts()]
    curve.draw_without_rendering()
    assert legend.get_window_extent().y1 < axes.get_window_extent().y0  # below, so that it covers no point
    assert labels == ["every_k", "flowcache", "teacache"]
    sweep = draw_warmup_sweep(points, reuse.curves, "vanilla", "here")
    assert [text.get_text() for text in sweep.legends[0].get_texts()] == ["5", "12"]
    assert len(sweep.axes) == 3


def test_one_family_alone_has_its_curve(tmp_path):
    """Of every_k alone, whose records name no threshold."""
    for prompt in PROMPTS:
        made(job_of(tmp_path, "method=vanilla"), prompt)
        made(job_of(tmp_path, "method=every_k", "reuse.every=2"), prompt, 0.55, metrics={"psnr": 50.0, "ssim": 0.9})
    reuse = reuse_of(Subject(job_of(tmp_path, "prompts=[a,b]"), (), Destination(tmp_path)))
    points = reuse_points(reuse.videos)
    assert points[["family", "line", "n"]].values.tolist() == [["every_k", 5, 2]]
    draw_reuse_curve(points, reuse.curves, "vanilla", "here")


def test_strips_show_a_frame_of_every_part():
    video = np.repeat(np.arange(9, dtype=np.uint8), 4 * 4 * 3).reshape(9, 4, 4, 3)
    shown = strip(video, 3)
    assert shown.shape == (4, 3 * 4 + 2 * 2, 3)
    assert shown[0, ::6, 0].tolist() == [1, 4, 7]  # the middle of every three
    assert (shown[:, 4:6] == 255).all()


def test_differences_are_brightened_alike_and_never_wrap():
    original = np.full((2, 4, 4, 3), 10, np.uint8)
    near, far = original + 3, original + 60
    assert difference(near, original, 4).tolist() == np.full((2, 4, 4, 3), 12).tolist()
    assert (difference(original, far, 8) == 255).all()
    assert common_gain({"near": near}, original) == 64
    assert common_gain({"far": far}, original) == 4
    assert common_gain({"near": near, "also near": near, "far": far}, original) == 64  # the median's
    assert common_gain({"same": original}, original) == 64
    figure = draw_frames(original, {"near\n50% of compute": near, "far": far}, 2, "a prompt", "vanilla")
    labels = [axes.get_ylabel() for axes in figure.axes]
    rows = ["near\n50% of compute", "difference x 8\n(near)", "far", "difference x 8\n(far)"]
    assert labels == ["vanilla", *rows]
    assert figure.axes[2].images[0].get_array()[0, 0].tolist() == [24, 24, 24]


@pytest.fixture
def made_in(monkeypatch, tmp_path):
    """Where the commands write to, at few dots an inch."""
    for key in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(STYLE, key, 40)
    return tmp_path


def test_the_command_makes_what_it_can_says_what_is_missing_and_repeats_itself(job, made_in, capsys):
    made(job_of(job.output_dir, "method=flowcache_fast"), "a", 0.7, metrics={"psnr": 45.0, "ssim": 0.9})
    made(job_of(job.output_dir, "method=flowcache_fast"), "b", 0.7, metrics={"psnr": 45.0, "ssim": 0.9})
    add_files(job)
    arguments = ["prompts=[a,b,c,d,e,f,g,h]", f"output_dir={job.output_dir}"]
    assert figures.main(arguments) == 0
    first = {path.name: path.read_bytes() for path in (made_in / "figures").iterdir()}
    drawn = {"reuse_curve", "warmup_sweep", "pareto", "reuse_map"}
    both = {f"magi_embedded_{name}.{form}" for name in drawn for form in ("png", "svg")}
    assert set(first) == both | {"magi_embedded_frames.png"}
    said = capsys.readouterr().err
    assert said.count("\n") == 3
    assert said.count("figures: no line for what rounding alone does to vanilla's videos of these weights; python") == 2
    assert "figures: no kv_memory: no finished long videos; make them first with python -m experiments.sweep" in said
    assert figures.main(arguments) == 0
    assert {path.name: path.read_bytes() for path in (made_in / "figures").iterdir()} == first


def test_it_makes_those_that_are_named_and_fails_where_they_cannot_be(job, made_in, capsys):
    arguments = ["prompts=[a,b]", f"output_dir={job.output_dir}"]
    assert figures.main([*arguments, "show=pareto"]) == 0
    assert {path.name for path in (made_in / "figures").iterdir()} == {
        "magi_embedded_pareto.png",
        "magi_embedded_pareto.svg",
    }
    assert capsys.readouterr().err == ""
    assert figures.main([*arguments, "show=frames,reuse_map"]) == 2
    assert capsys.readouterr().err.count("figures: no ") == 2
    assert figures.main([*arguments, "show=pareto,frame"]) == 2
    assert "show=pareto,frame: 'frame' is no figure of this command; did you mean frames?" in capsys.readouterr().err


def test_without_videos_or_sweeps_it_says_how_to_make_them(tmp_path, made_in, capsys):
    assert figures.main([f"output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "no reuse_curve: no finished videos of any method that reuses; make them with" in said
    assert "experiment=reuse_curve model=magi\n" in said
    assert "no frames: no finished records of model=magi" in said
    made(job_of(tmp_path, "method=vanilla"), "a")
    assert figures.main(["prompts=[a,b,c,d]", f"output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "no reuse_curve: no finished videos of any method that reuses; make them with" in said
    assert "no frames: no videos of 'a' by vanilla and a method with its defaults" in said
    assert not (made_in / "figures").exists()


def test_a_curve_against_another_baseline_needs_no_videos_of_the_main_table(tmp_path, made_in, capsys):
    job = job_of(tmp_path, "model=skyreels", "baseline=vanilla_kv", "method=vanilla_kv")
    made(job, "a")
    for overrides, share, psnr, ssim in SKYREELS_SETTINGS:
        job = job_of(tmp_path, "model=skyreels", "baseline=vanilla_kv", *overrides)
        made(job, "a", share, metrics={"psnr": psnr, "ssim": ssim})
    assert figures.main(["model=skyreels", "prompts=[a,b,c,d]", f"output_dir={tmp_path}"]) == 0
    drawn = {path.stem for path in (made_in / "figures").iterdir()}
    assert drawn == {f"skyreels_embedded_{name}" for name in ("reuse_curve", "warmup_sweep", "pareto")}
    assert "figures: no frames: no finished records of model=skyreels" in capsys.readouterr().err


def process(velocity: bool) -> pd.DataFrame:
    """Two chunks, two prompts, two grids; L1_rel is the step's tenth, doubled in the second prompt."""
    rows = []
    for shift in l1_rel.SHIFTS:
        for prompt, factor in (("a", 1), ("b", 2)):
            for entry in trace().itertuples():
                if entry.step:
                    row = {"shift": shift, "prompt": prompt, "row": entry.row, "chunk": entry.chunk, "step": entry.step}
                    row |= {"t": entry.t, "dt": 0.25, "input": 0.1 * factor * entry.step}
                    rows.append(row | ({"velocity": 0.5} if velocity else {}))
    return pd.DataFrame(rows)


def test_l1_rel_over_the_process_is_the_papers_figure():
    (axes,) = draw_process(process(velocity=True), "magi, embedded").axes
    first, second = axes.lines
    assert first.get_xdata().tolist() == pytest.approx([100 * row / 6 for row in (2, 3, 4)])  # 6 rows in all
    assert second.get_xdata().tolist() == pytest.approx([100 * row / 6 for row in (4, 5, 6)])
    assert first.get_ydata().tolist() == second.get_ydata().tolist() == pytest.approx([0.15, 0.3, 0.45])  # medians
    assert "2 prompts" in axes.get_ylabel()
    assert len(draw_steps(process(velocity=True), "here").axes) == 4
    assert len(draw_steps(process(velocity=False), "here").axes) == 2  # SkyReels-V2


@pytest.mark.parametrize("spread", [0.02, 100])
def test_a_logarithmic_axis_has_labels_whether_or_not_it_reaches_over_a_decade(spread):
    data = process(velocity=False)
    data["input"] = 0.042 + spread * (data["input"] - data["input"].min())
    drawn = draw_steps(data, "here")
    drawn.canvas.draw()
    for axes in drawn.axes:
        lowest, highest = axes.get_ylim()
        ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
        assert [tick for tick in ticks if lowest <= tick.get_loc() <= highest and tick.label1.get_text()]


def test_l1_rels_findings_have_intervals_over_prompts():
    table = l1_rel.table(process(velocity=False), "here")
    row = table.data.set_index(["shift", "quantity"]).loc[("own", "input")]
    assert (row["n"], row["growing_share"], row["first"]) == (2, 1, pytest.approx(0.15))
    assert row["first_ci95"] == pytest.approx(12.706205 * 0.05)
    assert set(table.data["quantity"]) == {"input", "input_per_dt"}


@pytest.mark.parametrize(("model", "frames"), [("magi", 48), ("skyreels", 37)])  # two chunks
def test_l1_rel_measures_both_models_on_both_grids(model, frames, tmp_path):
    small = (f"setting.num_frames={frames}", "setting.num_steps=4", "num_prompts=1", "threads=1")
    data = l1_rel.measure(job_of(tmp_path, f"model={model}", "method=vanilla", *small))
    assert ("velocity" in data) == (model == "magi")
    assert list(data["shift"].unique()) == ["own", "1"]
    steps = data.groupby(["shift", "chunk"])["step"].agg(list)
    assert set(map(tuple, steps)) == {(1, 2, 3)}  # nothing comes before the first
    assert (data["input"] > 0).all()
    assert data["dt"].between(0, 1, inclusive="neither").all()  # shares of the process, whatever the model counts in
    at_ends = data[data["step"] == 3].groupby("shift")["dt"].max()
    assert at_ends["own"] > at_ends["1"]  # a shift towards noise leaves long steps for the end


def test_l1_rel_is_measured_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(l1_rel, "measure", lambda job: calls.append(job) or process(velocity=True))
    job = job_of(tmp_path, "method=vanilla", "prompts=[a,b]")
    first, again = l1_rel.measured(job), l1_rel.measured(job)
    assert first.equals(again)
    assert len(calls) == 1
    l1_rel.measured(job_of(tmp_path, "method=vanilla", "prompts=[a]"))
    assert len(calls) == 2  # other prompts are another measurement


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_measurement_of_l1_rel_is_told_and_measured_again_where_forced(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(l1_rel, "measure", lambda job: process(velocity=True))
    job = job_of(tmp_path, "method=vanilla", "prompts=[a,b]")
    whole = l1_rel.measured(job)
    (path,) = tmp_path.glob("l1_rel/*.parquet")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadInput, match=f"{path} is damaged .*; give force=true"):
        l1_rel.measured(job)
    assert l1_rel.measured(replace(job, force=True)).equals(whole)


def test_a_figure_of_a_damaged_trace_is_left_out_with_its_name(job, made_in, capsys, monkeypatch):
    made(job_of(job.output_dir, "method=flowcache_fast"), "a", 0.7)
    add_files(job)
    store = RecordStore(job.output_dir)
    (vanilla,) = [record for record in store.all() if (record.method, record.prompt) == ("vanilla", "a")]
    store.trace_path(vanilla.key).write_bytes(b"PAR1")
    monkeypatch.setattr(figures, "FIGURES", {"reuse_map": figures.save_reuse_map})
    assert figures.main(["prompts=[a,b]", f"output_dir={job.output_dir}"]) == 2
    assert f"figures: no reuse_map: {store.trace_path(vanilla.key)} is missing or damaged" in capsys.readouterr().err


def test_methods_without_a_sweep_have_their_defaults_in_the_curve(tmp_path):
    """After the main table alone every method is there."""
    for method, share in (("vanilla", 1.0), ("flowcache_fast", 0.7), ("teacache_slow", 0.9), ("teacache_fast", 0.6)):
        for prompt in PROMPTS:
            metrics = {} if method == "vanilla" else {"psnr": 40.0, "ssim": 0.9}
            made(job_of(tmp_path, f"method={method}"), prompt, share, metrics=metrics)
    reuse = reuse_of(Subject(job_of(tmp_path), (), Destination(tmp_path)))
    points = reuse_points(reuse.videos)
    assert points[["family", "compute_left"]].values.tolist() == [
        ["flowcache", 0.7],
        ["teacache", 0.6],
        ["teacache", 0.9],
    ]


def test_frames_of_another_video_say_so(tmp_path, monkeypatch):
    job = job_of(tmp_path, "model=skyreels", "prompts=[a]")
    for method, share in (("vanilla", 1.0), ("flowcache_fast", 0.25), ("teacache_fast", 0.5)):
        made(job_of(tmp_path, "model=skyreels", f"method={method}"), "a", share)
    add_files(job)
    drawn = []
    monkeypatch.setattr(Subject, "save", lambda self, figure, stem, videos: drawn.append(figure))
    figures.save_frames(Subject(job, (), Destination(tmp_path)))
    labels = [axes.get_ylabel().partition("\n")[0] for axes in drawn[0].axes]
    assert labels[:2] == ["vanilla", "flowcache_fast †"]
    assert "teacache_fast" in labels  # as bidirectional as vanilla
    title = " ".join(drawn[0].get_suptitle().split())
    assert "† another video from the start; baseline=vanilla_kv shows caching alone" in title
