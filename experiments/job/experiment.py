"""An experiment file of conf/experiment as jobs.

An experiment lists override sets of run.py; commas in a value, but for those of a list, multiply it out. Every set runs
on every prompt.
``method=*`` is every method of conf/method but those under ``leave_out``, or those that an argument ``method=`` names.
What an experiment says under ``models`` takes the place of the rest for one model.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from omegaconf import OmegaConf

from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput
from experiments.job.groups import config_files
from experiments.job.job import Job, make_job
from experiments.job.names import nearest

EVERY_METHOD = "method=*"
# ${spread:8,4} -> [0,2,4,6]: so many of a chunk's steps, evenly spread from the first on; for fewer_steps.
OmegaConf.register_new_resolver(
    "spread",
    lambda num_steps, kept: "[" + ",".join(str(place * num_steps // kept) for place in range(kept)) + "]",
    replace=True,
)
_BETWEEN_VALUES = re.compile(r",(?![^\[]*\])")  # not those of a list


def expand(overrides: list[str]) -> list[list[str]]:
    """['a=1,2', 'b=3'] -> [['a=1', 'b=3'], ['a=2', 'b=3']]."""
    choices = []
    for override in overrides:
        key, _, values = override.partition("=")
        choices.append([f"{key}={value}" for value in _BETWEEN_VALUES.split(values)])
    return [list(combination) for combination in itertools.product(*choices)]


def experiment_of(arguments: list[str]) -> tuple[str, list[str]]:
    """The experiment that ``experiment=<name>`` names (main_table if nothing does), and the other arguments."""
    named = [a.partition("=")[2] for a in arguments if a.startswith("experiment=")]
    return (named or ["main_table"])[-1], [a for a in arguments if not a.startswith("experiment=")]


def read_experiment(name: str, extra: list[str]) -> dict[str, Any]:
    """What an experiment file says of the model that the arguments choose. Raises BadInput for an unknown one."""
    files = {path.stem: path for path in config_files("experiment")}
    if name not in files:
        raise BadInput(f"unknown experiment {name!r}; {nearest(name, list(files))}")
    experiment = OmegaConf.load(files[name])
    model = [argument for argument in extra if argument.startswith("model=")]
    check_overrides(model)
    own = experiment.pop("models", {}).get(compose_config(model).model.name, {})
    return OmegaConf.to_container(OmegaConf.merge({"baseline": "vanilla"}, experiment, own), resolve=True)


def listed_methods(name: str) -> list[str]:
    """Methods that an experiment file names, in its order."""
    (path,) = (path for path in config_files("experiment") if path.stem == name)
    overrides = OmegaConf.load(path)["overrides"]
    values = (one.partition("=")[2] for listed in overrides for one in listed if one.startswith("method="))
    return list(dict.fromkeys(method for value in values for method in value.split(",")))


def jobs_of(name: str, extra: list[str]) -> tuple[list[Job], dict[str, Any]]:
    """Every job of an experiment file, the baseline first so that references exist, and what the file says.

    Raises BadInput for an unknown experiment, and for arguments that are wrong or do not fit it.
    """
    experiment = read_experiment(name, extra)
    chosen = [argument for argument in extra if argument.startswith("method=")]
    extra = [argument for argument in extra if argument not in chosen]
    listed_sets = _with_methods(name, experiment, chosen)
    common = [
        f"num_prompts={experiment['num_prompts']}",
        f"metrics=[{','.join(experiment['metrics'])}]",
        f"latency_pairs={experiment['latency_pairs']}",
        f"baseline={experiment['baseline']}",
        *extra,
    ]
    sets = [overrides for listed in listed_sets for overrides in expand(listed)]
    for overrides in sets:
        check_overrides(overrides + extra)
    jobs = [make_job(compose_config(overrides + common)) for overrides in sets]
    jobs = [job for place, job in enumerate(jobs) if job not in jobs[:place]]  # what two sets ask for
    return sorted(jobs, key=lambda job: not job.is_baseline), experiment


def _with_methods(name: str, experiment: dict[str, Any], chosen: list[str]) -> list[list[str]]:
    """An experiment's override sets with names for ``method=*``: those of an argument, if one chose some, or all."""
    sets = experiment["overrides"]
    if chosen and not any(EVERY_METHOD in listed for listed in sets):
        raise BadInput(f"experiment {name} names the methods that it compares; leave {chosen[-1]} out")
    known = (path.stem for path in config_files("method"))
    every = [method for method in known if method not in experiment.get("leave_out", [])]
    names = chosen[-1].partition("=")[2].split(",") if chosen else every
    methods = ",".join(dict.fromkeys([experiment["baseline"], *names]))
    return [[one.replace(EVERY_METHOD, f"method={methods}") for one in listed] for listed in sets]
