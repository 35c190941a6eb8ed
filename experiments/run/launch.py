"""Tasks beside each other through Hydra's launchers: processes of this machine, of a Ray cluster, of Slurm's nodes.

``run.py -m`` starts a task a job. A sweep starts ``tasks=<n>`` equal ones, which drain its queue together: a task makes
what nobody else is making, so that how many there are, and whether one is stopped and begun again, changes no video.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from experiments.job.errors import BadInput, TaskFailed, explain
from experiments.job.groups import CONF, config_files
from experiments.job.names import nearest
from experiments.job.paths import ROOT
from experiments.run.lifeline import end_with

# Launchers whose tasks may run on other machines than the one that starts them.
ELSEWHERE = ("ray", "submitit_slurm")
_REQUIREMENTS = defaultdict(lambda: "requirements.txt", ray="requirements-ray.txt")
_BASIC = "basic"  # Hydra's own: one job after the other, in this process
_STARTER = "FLOWCACHE_STARTER"  # variable: the process that tasks of this machine end with


@dataclass(frozen=True)
class Launcher:
    """What starts the tasks of a sweep: the launcher that ``overrides`` choose and set, and how many."""

    name: str
    overrides: tuple[str, ...]
    num_tasks: int

    def run(self, work: Callable[[], None]) -> None:
        """Do the same work in every task and wait for all. Raises the BadInput or TaskFailed of the first that fails.

        Args:
            work: is sent to the tasks, and finds for itself what is left to be done.
        """

        def task(config: DictConfig) -> None:
            end_with_starter()
            try:
                work()
            except Exception as error:
                raise sendable(error) from None

        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base=None, config_dir=str(CONF)):
            tasks = f"+task={','.join(map(str, range(self.num_tasks)))}"
            try:
                GlobalHydra.instance().hydra.multirun("config", task, [*self.overrides, tasks])
            except HydraException as error:
                raise BadInput(f"hydra/launcher={self.name}: {error}") from error


def launcher_of(arguments: Sequence[str]) -> tuple[Launcher | None, list[str]]:
    """The launcher that a sweep's arguments name, if any, and the other arguments. Raises BadInput."""
    overrides = tuple(a for a in arguments if a.startswith(("hydra/", "hydra.")))
    numbers = [a.partition("=")[2] for a in arguments if a.startswith("tasks=")]
    others = [a for a in arguments if a not in overrides and not a.startswith("tasks=")]
    name = launcher_name(arguments)
    if name == _BASIC:
        stray = [a for a in arguments if a not in others]
        if stray:
            raise BadInput(f"{stray[0]} is for a launcher; choose one with hydra/launcher=: {', '.join(_known())}")
        return None, others
    if not numbers or not numbers[-1].isdecimal() or int(numbers[-1]) < 1:
        raise BadInput(f"hydra/launcher={name} needs to know how many tasks share the work; give tasks=<n>, 1 or more")
    if name in ELSEWHERE and not any(a.startswith("device=") and a != "device=auto" for a in others):
        raise BadInput(f"hydra/launcher={name} may run on other machines than this; give device=cuda or device=cpu")
    prepare(arguments)
    directory = tuple(a for a in others if a.startswith("output_dir="))
    return Launcher(name, (*overrides, *directory), int(numbers[-1])), others


def launcher_name(arguments: Sequence[str]) -> str:
    """Of the launcher that arguments choose; "basic" if none."""
    named = [a.partition("=")[2] for a in arguments if a.startswith("hydra/launcher=")]
    return (named or [_BASIC])[-1]


def prepare(arguments: Sequence[str]) -> None:
    """Check that the launcher is there, and let its tasks find this checkout wherever they begin, and this process,
    where they are of the same machine. Raises BadInput."""
    name = launcher_name(arguments)
    if name == _BASIC:
        return
    if name not in _known():
        raise BadInput(f"unknown launcher {name!r}; {nearest(name, _known())}")
    plugin = f"hydra-{name.partition('_')[0]}-launcher"
    try:
        distribution(plugin)
    except PackageNotFoundError:
        raise BadInput(
            f"hydra/launcher={name} needs {plugin}, which is not installed; pip install -r {_REQUIREMENTS[name]}"
        ) from None
    # Ours stand in place of the plugins' own of the same names, and are whole without them.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore", UserWarning)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *paths]))
    if name not in ELSEWHERE:  # Ray ends its tasks by itself, and Slurm's are to go on
        os.environ[_STARTER] = str(os.getpid())


def end_with_starter() -> None:
    """Let this process, a task, end when the one that started it has, if both are of one machine."""
    starter = os.environ.get(_STARTER)
    if starter and int(starter) != os.getpid():
        end_with(int(starter))


def is_launched() -> bool:
    """Whether this is a job that a launcher other than Hydra's own started."""
    return HydraConfig.get().runtime.choices["hydra/launcher"] != _BASIC


def sendable(error: Exception) -> Exception:
    """The error as one that any launcher can send to where it was started from."""
    return BadInput(str(error)) if isinstance(error, BadInput) else TaskFailed(explain(error))


def _known() -> list[str]:
    return [path.stem for path in config_files("hydra/launcher")]
