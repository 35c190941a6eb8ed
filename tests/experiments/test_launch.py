"""Sweeps through launchers: what is refused, what is asked of Slurm, and that tasks make each video once."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections import Counter
from dataclasses import fields
from importlib.metadata import PackageNotFoundError

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

import run
from experiments.job.device import check_device
from experiments.job.errors import BadInput, Failure, RunFailed, TaskFailed
from experiments.job.groups import CONF, config_files
from experiments.job.paths import ROOT
from experiments.records import RecordStore
from experiments.run import launch, sweep
from experiments.run.launch import Launcher, launcher_of, prepare, sendable

LAUNCHERS = [path.stem for path in config_files("hydra/launcher")]
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]  # Hydra's handlers would outlive the test
# One chunk of eight steps: every method has a step after its warm-up.
SMALLEST = ["setting.num_frames=24", "setting.num_steps=8", "num_prompts=2", "metrics=[psnr]", "threads=1", "workers=1"]


def needs(name: str) -> None:
    """Skip the test where the launcher's plugin is not installed."""
    try:
        prepare([f"hydra/launcher={name}"])
    except BadInput as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Hydra's global state and the path for tasks are of this process."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield
    GlobalHydra.instance().clear()


def composed(name: str, *overrides: str):
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        return compose("config", [f"hydra/launcher={name}", *overrides], return_hydra_config=True).hydra


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_composes_with_or_without_its_plugin(name):
    hydra = composed(name)
    assert hydra.launcher._target_.startswith("hydra_plugins.hydra_")
    assert hydra.runtime.choices["hydra/launcher"] == name


def test_slurm_is_asked_for_an_array_that_is_queued_again_and_for_a_gpu():
    asked = composed("submitit_slurm").launcher
    assert (asked.gpus_per_node, asked.nodes, asked.tasks_per_node) == (1, 1, 1)
    assert asked.timeout_min * 60 > asked.signal_delay_s > 0
    assert asked.max_num_timeout > 0
    assert asked.array_parallelism > 1
    assert asked.additional_parameters.requeue is True


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_plugin_knows_every_key(name):
    needs(name)
    given = OmegaConf.to_container(composed(name).launcher, resolve=False)
    module, of_plugin = {
        "joblib": ("hydra_joblib_launcher.config", "JobLibLauncherConf"),
        "ray": ("hydra_ray_launcher._config", "RayLauncherConf"),
        "submitit_local": ("hydra_submitit_launcher.config", "LocalQueueConf"),
        "submitit_slurm": ("hydra_submitit_launcher.config", "SlurmQueueConf"),
    }[name]
    known = fields(getattr(importlib.import_module(f"hydra_plugins.{module}"), of_plugin))
    assert set(given) <= {field.name for field in known}
    assert given["_target_"] in {field.default for field in known}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra/launcher=submitit", "tasks=2"], "unknown launcher 'submitit'; did you mean submitit_"),
        (["hydra/launcher=joblib"], "give tasks=<n>"),
        (["hydra/launcher=joblib", "tasks=0"], "give tasks=<n>"),
        (["hydra/launcher=joblib", "tasks=many"], "give tasks=<n>"),
        (["tasks=2"], "tasks=2 is for a launcher; choose one with hydra/launcher=: joblib, ray, submitit_local"),
        (["hydra.launcher.n_jobs=2"], "hydra.launcher.n_jobs=2 is for a launcher"),
        (["hydra/launcher=submitit_slurm", "tasks=2"], "may run on other machines than this; give device=cuda or"),
        (["hydra/launcher=ray", "tasks=2", "device=auto"], "may run on other machines"),
    ],
)
def test_what_is_no_launcher_is_refused(arguments, message):
    with pytest.raises(BadInput, match=message):
        launcher_of(["experiment=main_table", *arguments])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_plugin_that_is_missing_is_named(name, monkeypatch, capsys):
    def missing(distribution):
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(launch, "distribution", missing)
    plugin = f"hydra-{name.split('_')[0]}-launcher"
    file = "requirements-ray.txt" if name == "ray" else "requirements.txt"
    said = f"hydra/launcher={name} needs {plugin}, which is not installed; pip install -r {file}"
    assert f"{plugin}==" in (ROOT / file).read_text(encoding="utf-8")
    assert sweep.main([f"hydra/launcher={name}", "tasks=2", "device=cpu"]) == 2
    assert capsys.readouterr().err == f"sweep: {said}\n"
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", f"hydra/launcher={name}"])
    assert run.main() == 2
    assert capsys.readouterr().err == f"run.py: {said}\n"


def test_arguments_are_parted_into_the_launchers_and_the_sweeps(monkeypatch):
    monkeypatch.setattr(launch, "distribution", lambda name: None)
    own = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    launcher, others = launcher_of(["experiment=main_table", *own, "tasks=8", "device=cuda", "output_dir=there"])
    assert launcher == Launcher("submitit_slurm", (*own, "output_dir=there"), 8)
    assert others == ["experiment=main_table", "device=cuda", "output_dir=there"]
    assert str(ROOT) in os.environ["PYTHONPATH"].split(os.pathsep)
    assert launcher_of(["seed=1"]) == (None, ["seed=1"])


def test_a_gpu_may_be_another_machines(small_job):
    """The machine that starts the tasks may have none; whoever loads a model must."""
    job = small_job("device=cuda:99", "method=vanilla")
    assert job.settings["device"] == "cuda"
    for refuse in (lambda: check_device(job.device), job.load_model):
        with pytest.raises(BadInput, match="device=cuda:99 but"):
            refuse()


def test_every_task_does_the_work_and_failures_come_back(tmp_path):
    launcher = Launcher("basic", (f"output_dir={tmp_path}", *QUIET), 3)
    done = []
    launcher.run(lambda: done.append(1))
    assert len(done) == 3
    for error, expected in ((BadInput("wrong"), BadInput), (RuntimeError("broken"), TaskFailed)):

        def fail(error=error):
            raise error

        with pytest.raises(expected, match=str(error)):
            launcher.run(fail)
    with pytest.raises(BadInput, match=r"hydra/launcher=basic: .*n_jobs"):
        Launcher("basic", ("hydra.launcher.n_jobs=2", *QUIET), 1).run(lambda: None)


def test_what_failed_can_be_sent_and_says_the_same():
    failed = RunFailed([Failure("vanilla", "a cat", RuntimeError("broken"))])
    for error in (failed, BadInput("wrong"), OSError(28, "No space left on device")):
        received = pickle.loads(pickle.dumps(sendable(error)))
        assert type(received) is (BadInput if isinstance(error, BadInput) else TaskFailed)
    assert str(pickle.loads(pickle.dumps(sendable(failed)))) == str(failed)


def test_the_batch_script(tmp_path, monkeypatch):
    """What sbatch is given, by a stand-in for it; the results of the tasks are made up."""
    needs("submitit_slurm")
    submitit = importlib.import_module("submitit")
    for name, body in (("srun", ""), ("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 7')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    finished = JobReturn(status=JobStatus.COMPLETED)
    monkeypatch.setattr(submitit.SlurmJob, "results", lambda self: [finished])
    own = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90")
    Launcher("submitit_slurm", (*own, f"output_dir={tmp_path}", *QUIET), 3).run(print)
    script = (tmp_path / "script").read_text(encoding="utf-8").splitlines()
    wanted = ["array=0-2%3", "partition=gpu", "time=90", "gpus-per-node=1", "cpus-per-task=8", "mem=64GB", "requeue"]
    assert {f"#SBATCH --{option}" for option in [*wanted, "signal=USR2@300", "open-mode=append"]} <= set(script)
    (command,) = (line for line in script if "submitit.core._submit" in line)
    assert command.startswith("srun ")
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in script[: script.index(command)]
    assert len(list(tmp_path.glob("hydra/*/.submitit/*/*submitted.pkl"))) == 3


def test_tasks_that_would_all_make_all_are_refused(small_job):
    with pytest.raises(BadInput, match="force=true would have every task make every video"):
        sweep.share_out(Launcher("basic", (), 2), [small_job("force=true")], list)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "submitit_slurm"])
def test_tasks_make_each_video_once(name, tmp_path, capfd):
    needs(name)
    few = ["method=every_k,flowcache_fast,flowcast_fast", "latency_pairs=0"]  # beside vanilla, which all wait for
    arguments = [*SMALLEST, *few, "device=cpu", "wandb.mode=disabled", f"output_dir={tmp_path}"]
    assert sweep.main([*arguments, f"hydra/launcher={name}", "tasks=2", *QUIET]) == 0
    records = list(RecordStore(tmp_path).all())
    jobs = sweep.find_jobs(arguments)
    made = Counter((record.method, record.prompt, record.status) for record in records)
    assert made == Counter((job.method_name, prompt, "finished") for job in jobs for prompt in job.prompts)
    assert all(record.maker != f"{os.uname().nodename}:{os.getpid()}" for record in records)
