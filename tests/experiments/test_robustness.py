"""The study of settings that no plan was made for: what it compares, and with what."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from experiments.job.cli import compose_config
from experiments.job.groups import CONF
from experiments.job.job import make_job
from experiments.studies import robustness
from flowcache.reuse.never import Never
from tests.experiments.made_records import job_of
from tests.experiments.made_results import check_says_all

STUDY = OmegaConf.to_container(OmegaConf.load(CONF / "studies" / "robustness.yaml"))


@pytest.mark.parametrize(
    ("num_steps", "fraction", "count"), [(64, 0.25, 16), (64, 0.36, 23), (16, 0.4, 6), (30, 0.0, 2)]
)
def test_every_kth_step_computes_as_many_as_ours_the_first_and_the_last_among_them(num_steps, fraction, count):
    policy = robustness.evenly(num_steps, fraction)
    steps = [step for step in range(num_steps) if policy._computes(step, num_steps)]
    assert len(steps) == count
    assert steps[0] == 0
    assert steps[-1] == num_steps - 1


def test_every_kth_step_gets_the_compute_of_ours_not_its_number_of_steps(tmp_path):
    """Whatever they are in number, steps of a quarter of the FLOPs are worth 8 of 32."""
    job = job_of(tmp_path, "method=flowcast_fast", "setting.num_steps=32", "num_prompts=1")
    computed = []

    class Made(robustness.Videos):
        def of(self, job, method):
            computed.append(method.reuse)
            of_steps = 1000 if isinstance(method.reuse, Never) else 250
            return [(torch.full((1, 1, 1, 1, 1), float(of_steps)), 100 + of_steps, of_steps, 32)]

    (row,) = robustness.compared(job, Made(map))
    assert row["ours_share"] == pytest.approx(350 / 1100)
    *_, corrected, held = computed
    assert corrected == held == robustness.evenly(32, 0.25)


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, own in STUDY["models"].items() for name in own])
def test_every_setting_composes_and_has_prompts(model, name, tmp_path):
    setting = STUDY["models"][model][name]
    overrides = [f"model={model}", f"checkpoint={tmp_path}", f"method={STUDY['method']}", *setting["overrides"]]
    job = make_job(compose_config([*overrides, f"num_prompts={setting.get('num_prompts', STUDY['num_prompts'])}"]))
    assert len(job.prompts) >= 6  # that an interval needs
    assert set(setting) <= {"overrides", "calibrate", "num_prompts"}


def test_differences_are_prompt_by_prompt():
    frame = pd.DataFrame(
        {
            "ours_db": [50.0, 30.0, 40.0],
            "even_corrected_db": [45.0, 31.0, 30.0],
            "even_held_db": [20.0, 20.0, 20.0],
            **{f"{name}_share": [0.3, 0.3, 0.3] for name in ("ours", *robustness.OTHERS)},
        }
    )
    row = robustness.summary(frame)
    assert row["even_corrected_difference_db"] == pytest.approx(14 / 3)
    assert row["even_corrected_won"] == "2 of 3"
    assert row["even_held_won"] == "3 of 3"
    assert row["ours_least_db"] == 30.0


def test_the_command_makes_its_table_of_a_small_setting(tmp_path, monkeypatch, capsys):
    small = ["setting.num_frames=48", "setting.num_steps=8"]
    study = {"num_prompts": 2, "method": "flowcast_fast", "shares": [0.5], "models": {"magi": {
        "own": {"overrides": small, "calibrate": 1}, "none": {"overrides": small, "calibrate": 0},
    }}}  # fmt: skip
    monkeypatch.setattr(robustness.OmegaConf, "to_container", lambda loaded, _all=OmegaConf.to_container, **k: (
        study if "models" in loaded else _all(loaded, **k)
    ))  # fmt: skip
    made, latents = [], robustness.latents
    monkeypatch.setattr(robustness, "latents", lambda *given: made.append(given[-1][-1]) or latents(*given))
    assert robustness.main(["model=magi", "workers=1", "threads=1", f"output_dir={tmp_path}"]) == 0
    assert sum(isinstance(method.reuse, Never) for method in made) == 2, "whole runs are made once, for both settings"
    data = pd.read_csv(tmp_path / "tables" / "magi_embedded_robustness.csv")
    assert list(data["setting"]) == ["own", "none"]
    assert (data["n"] == 2).all()
    assert data["ours_share"].between(0.3, 0.8).all()
    assert (data["ours_db"] > 0).all()
    check_says_all(tmp_path / "tables" / "magi_embedded_robustness.md")


def test_a_setting_that_is_not_there_is_refused(tmp_path, capsys):
    assert robustness.main(["model=magi", "settings=17 steps", f"output_dir={tmp_path}"]) == 2
    assert "settings='17 steps' is none of magi's" in capsys.readouterr().err
