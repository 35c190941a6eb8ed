"""A busy machine: what counts as one, and that a run says so before it makes videos."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.job.cli import compose_config
from experiments.records.load import is_busy, told_load
from experiments.run import environment
from experiments.run.main_job import run_job
from tests.experiments.conftest import SMALL


@pytest.mark.parametrize(
    ("machine", "busy"),
    [
        ({"load_average_1min": 2.01, "cores": 2}, True),
        ({"load_average_1min": 2.0, "cores": 2}, False),  # what a run that has just ended leaves
        ({"load_average_1min": 9.0, "cores": 16}, False),
        ({"cores": 2}, False),
        ({"load_average_1min": 9.0}, False),
    ],
)
def test_more_load_than_cores_is_busy(machine, busy):
    assert is_busy(machine) == busy


def test_the_load_is_told_from_least_to_most():
    assert told_load([{"load_average_1min": 3.14, "cores": 2}]) == "load average 3.1, cores 2"
    loads = [{"load_average_1min": load, "cores": cores} for load, cores in ((8.0, 2), (2.5, 2), (5.0, 4))]
    assert told_load(loads) == "load average 2.5 to 8.0, cores 2 or 4"


@pytest.mark.parametrize(("load", "said"), [(8.26, True), (1.9, False)])
def test_a_run_says_that_the_machine_is_busy_before_it_makes_videos(tmp_path, monkeypatch, load, said):
    def no_videos(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_static", lambda: {"load_average_1min": load, "cores": 2})
    monkeypatch.setattr("experiments.run.main_job.run_jobs", no_videos)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        run_job(compose_config([*SMALL, "method=vanilla", f"output_dir={tmp_path}"]), console)
    line = "      the machine is busy (load average 8.3, cores 2): times taken now are too long, and marked\n"
    assert (line in console.file.getvalue()) == said
