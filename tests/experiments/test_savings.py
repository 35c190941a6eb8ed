"""What methods save at equal loss, over step counts: by hand, from made records, and the one figure."""

from __future__ import annotations

import math

import pytest
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from experiments.job.errors import BadInput
from experiments.job.experiment import read_experiment
from experiments.job.job import Job
from experiments.records.collect import collect
from experiments.show import figures
from experiments.show.results import markdown
from experiments.show.savings import Savings, compute_at, draw_savings, psnr_at, saved, table, videos_of
from tests.experiments.made_records import job_of, made
from tests.experiments.made_results import check_says_all

PROMPTS = ("a", "b")
SAVINGS = Savings(losses_db=(1, 3, 10), against="fewer_steps", families=("magi", "skyreels"))
THREE = 10 * math.log10(2)  # dB; as far as half of the steps
SAVINGS_3 = Savings(losses_db=(THREE,), against="fewer_steps", families=("magi",))
KEY, MORE = f"saved_{THREE:g}_db", f"more_{THREE:g}_db"
SETTINGS = (  # of 8 and 4 steps: overrides, compute left, PSNR in dB
    (["method=fewer_steps", "reuse.steps=${half}"], 0.5, 30.0),
    (["method=fewer_steps", "reuse.steps=[0]"], 0.25, 20.0),
    (["method=every_k", "forecast=linear", "reuse.warmup_steps=0", "reuse.every=2"], 0.5, 40.0),
    (["method=every_k", "forecast=linear", "reuse.warmup_steps=0", "reuse.every=4"], 0.3, 25.0),
)
HALVES = {8: "[0,2,4,6]", 4: "[0,2]"}


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    """The second prompt is easier by 2 dB, for all methods alike; four steps are 5 dB worse."""
    jobs = []
    for steps, half in HALVES.items():
        jobs.append(job_of(tmp_path, "method=vanilla", f"setting.num_steps={steps}"))
        for prompt in PROMPTS:
            made(jobs[-1], prompt, caption={"right": steps == 8 or prompt == "a"})
        for overrides, share, psnr in SETTINGS:
            own = [override.replace("${half}", half) for override in overrides]
            jobs.append(job_of(tmp_path, *own, f"setting.num_steps={steps}"))
            for prompt in PROMPTS:
                value = psnr + 2 * (prompt == "b") - 5 * (steps == 4)
                made(jobs[-1], prompt, share, metrics={"psnr": value})
    return jobs


def test_a_loss_is_what_a_methods_error_adds_to_that_of_half_the_steps():
    assert psnr_at(THREE, 30) == pytest.approx(30)
    for loss in (1, 3, 10):  # error of the method over that of half the steps
        error = 10 ** ((30 - psnr_at(loss, 30)) / 10)
        assert 10 * math.log10(1 + error) == pytest.approx(loss)
    assert psnr_at(1, 58) == 60  # vanilla's


@pytest.mark.parametrize(
    ("psnr", "share"),
    [
        (60, 1.0),  # vanilla alone
        (41, 1.0),  # more than any setting: nothing is interpolated up to vanilla
        (40, 0.5),
        (30, 0.4),
        (25, 0.3),  # on a line that rises again
        (20, 0.3),
        (5, 0.2),  # less than any setting
    ],
)
def test_compute_is_the_least_on_the_lines_between_settings(psnr, share):
    points = ([0.5, 0.3, 0.2], [40.0, 20.0, 10.0]) if psnr != 25 else ([0.3, 0.4], [25.0, 22.0])
    assert compute_at(psnr, *points) == pytest.approx(share)


def test_savings_by_hand(jobs):
    rows = saved(videos_of(jobs, SAVINGS_3), SAVINGS_3)
    assert list(zip(rows["steps"], rows["method"], rows["n"], strict=True)) == [
        (8, "every_k + linear", 2),
        (8, "fewer_steps", 2),
        (4, "every_k + linear", 2),
        (4, "fewer_steps", 2),
    ]
    by_method = rows.set_index(["steps", "method"])
    for steps, half, captions in ((8, 31.0, 1.0), (4, 26.0, 0.5)):
        assert by_method.loc[(steps, "fewer_steps"), "vanilla_captions"] == captions
        assert by_method.loc[(steps, "fewer_steps"), "half_db"] == pytest.approx(half)
        assert by_method.loc[(steps, "fewer_steps"), KEY] == pytest.approx(0.5)  # what half the steps are
        # A third of the way from 25 dB at 0.3 to 40 dB at 0.5, whatever the prompt.
        assert by_method.loc[(steps, "every_k + linear"), KEY] == pytest.approx(1 - (0.3 + 0.2 / 3))
        assert by_method.loc[(steps, "every_k + linear"), MORE] == pytest.approx(0.5 - (0.3 + 0.2 / 3))


def test_only_prompts_that_every_setting_of_a_step_count_has(jobs):
    made(jobs[1], "c", 0.5, metrics={"psnr": 10.0})
    assert set(videos_of(jobs, SAVINGS)["prompt"]) == set(PROMPTS)
    with pytest.raises(BadInput, match="no prompt has finished videos of all settings of a step count"):
        videos_of([job_of(jobs[0].output_dir, "method=vanilla", "setting.num_steps=2")], SAVINGS)


def test_a_video_of_the_same_options_counts_under_whatever_name_it_was_made(tmp_path, jobs):
    fast, slow = ("method=flowcache_fast", "method=flowcache_slow")
    own = job_of(tmp_path, fast, "reuse.threshold=0.5", "reuse.warmup_steps=1", "setting.num_steps=8")
    for prompt in PROMPTS:
        made(job_of(tmp_path, slow, "reuse.threshold=0.5", "reuse.warmup_steps=1", "setting.num_steps=8"), prompt, 0.4)
    videos = videos_of([*jobs, own], SAVINGS)
    assert set(videos[videos["steps"] == 8]["family"]) == {"every_k + linear", "fewer_steps", "flowcache"}


def test_a_setting_that_skipped_nothing_is_vanilla_and_no_end_of_a_line(jobs):
    videos = videos_of(jobs, SAVINGS_3)
    every_k = videos["family"] == "every_k + linear"
    dear = every_k & (videos["flops_share"] == 0.5)
    videos.loc[dear, ["flops_share", "psnr"]] = 1.0, 60.0
    rows = saved(videos, SAVINGS_3).set_index(["steps", "method"])
    # What is left, 25 dB at 0.3, loses more than half of the steps do, which have 30.
    assert rows.loc[(8, "every_k + linear"), KEY] == 0.0


def test_without_half_the_steps_there_is_no_loss(jobs):
    videos = videos_of(jobs, SAVINGS)
    others = videos[videos["flops_share"] != 0.5]
    with pytest.raises(BadInput, match="against half of the 8 steps, and no fewer_steps takes 4"):
        saved(others, SAVINGS)


def test_the_table_says_in_words_what_a_loss_is(jobs):
    videos = videos_of(jobs, SAVINGS)
    text = markdown(table(saved(videos, SAVINGS), SAVINGS, "made"))
    assert "as far from vanilla as those are is 3 dB" in text
    assert "more than fewer_steps, 3 dB" in text
    assert "| 50% | 26.0 |" in text
    assert len(collect(jobs[0])) == len(PROMPTS) * (len(SETTINGS) + 1)


def test_the_figure_has_a_row_a_model_and_a_column_a_loss(jobs):
    rows = saved(videos_of(jobs, SAVINGS), SAVINGS)
    figure = draw_savings(rows, SAVINGS)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["magi, 1 dB of loss", "magi, 3 dB of loss", "magi, 10 dB of loss"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["4", "8"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"every_k + linear", "fewer_steps"}
    plt.close(figure)


def test_steps_are_spread_evenly_from_the_first_on():
    made_of = OmegaConf.create({"steps": "reuse.steps=${spread:8,6},${spread:4,1}"})
    assert made_of.steps == "reuse.steps=[0,1,2,4,5,6],[0]"


def test_every_model_of_the_experiment_lists_half_of_its_steps():
    for model, counts in (("magi", (64, 32, 16, 8)), ("skyreels", (32, 16, 8)), ("wan_multistep", (32, 16, 8))):
        listed = [" ".join(own) for own in read_experiment("distilled", [f"model={model}"])["overrides"]]
        for steps in counts:
            half = "[" + ",".join(str(step) for step in range(0, steps, 2)) + "]"
            assert any(f"num_steps={steps} method=fewer_steps" in own and half in own for own in listed)
    assert read_experiment("distilled", ["model=wan"])["savings"]["steps"] == 4


def test_the_command_says_what_to_make_where_there_are_no_videos(tmp_path, capsys):
    assert figures.main(["experiment=distilled", "model=wan", f"output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "without wan: " in said
    assert "python -m experiments.sweep experiment=distilled model=wan" in said


@pytest.mark.parametrize(("named", "stem"), [((), "embedded_distilled"), (("model=magi",), "magi_embedded_distilled")])
def test_files_of_one_model_alone_are_not_those_of_all(jobs, tmp_path, monkeypatch, named, stem):
    def own_jobs(name, arguments):
        return [job for job in jobs if f"model={job.model_name}" in arguments], {"savings": vars(SAVINGS)}

    monkeypatch.setattr(figures, "jobs_of", own_jobs)
    assert figures.main(["experiment=distilled", *named, f"output_dir={tmp_path}"]) == 0
    written = {path.name for folder in ("tables", "figures") for path in (tmp_path / folder).iterdir()}
    assert written == {f"{stem}.{kind}" for kind in ("csv", "md", "tex", "png", "svg")}
    for name in (f"tables/{stem}.md", f"figures/{stem}.png", f"figures/{stem}.svg"):
        check_says_all(tmp_path / name)


def test_the_figure_leaves_out_and_names_what_vanilla_does_not_show(jobs):
    rows = saved(videos_of(jobs, SAVINGS), SAVINGS)
    figure = draw_savings(
        rows.assign(vanilla_captions=[0.4 if steps == 4 else 1.0 for steps in rows["steps"]]), SAVINGS
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["8"]
    assert "without magi of 4 steps, of which vanilla does not show most captions" in figure.get_suptitle()
    plt.close(figure)
