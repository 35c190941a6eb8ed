"""All that is committed of results, made on one version of the code: ``python -m experiments.all``.

conf/results.yaml lists every file of results/ and notebooks/ with the commands that make it. They run one after
another and write into results/; what is up to date is skipped and finished videos are kept, so that the same command
goes on after whatever ended it. Before they start, what is left and about how long it takes is told: by seconds of
finished videos, or else by vanilla's compute, and of other commands by those of last time. results/made.json keeps
code, machine and seconds of each. Calibrations (conf/plans, conf/ratios, conf/heads) and weights are inputs and are not
made again. At the end pages of the docs quote the tables anew (experiments.show.quote).

``plan=true`` tells that and stops. ``only=field,main_table`` makes these alone, ``model=magi`` the results of one model
alone. ``output_dir=folder`` keeps videos there: in an empty one everything is made and timed anew. ``check=true`` makes
nothing: it fails with a list if a committed table or figure is of another version of the code than the newest among
them, is of records that today's code does not read, does not say its n, code and machine, or is on no list.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch

from experiments.committed.check import problems, told_problems
from experiments.committed.ledger import LEDGER, read_ledger
from experiments.committed.listed import Result, chosen, read_results
from experiments.committed.make import Maker, run_command, told_outcomes
from experiments.committed.plan import State, state_of, told_state, told_total
from experiments.committed.videos import videos_of
from experiments.job.errors import BadInput, command
from experiments.job.names import nearest
from experiments.job.paths import ROOT, check_writable, results_folder
from experiments.records import code_version
from experiments.run import environment
from experiments.show import quote

OPTIONS = {"plan": "false", "check": "false", "only": "", "model": "", "output_dir": ""}


@command("all")
def main(arguments: list[str]) -> int:
    given = read_options(arguments)
    results = read_results()
    if given["check"] == "true":
        found = problems(results, read_ledger(LEDGER), code_version(), ROOT)
        found += quote.told(quote.refresh(ROOT, write=False))
        print(told_problems(found, results), file=sys.stderr if found else sys.stdout)
        return 1 if found else 0
    names = [name for name in given["only"].split(",") if name]
    wanted = chosen(results, names, given["model"] or None)
    extra = [f"output_dir={given['output_dir']}"] if given["output_dir"] else []
    check_writable(results_folder(given["output_dir"] or "outputs"))
    states = planned(wanted, extra)
    print(told_total(states), flush=True)
    if given["plan"] == "true":
        print("plan=true: nothing was made; the same command without it does the work")
        return 0
    machine = environment.describe("cuda" if torch.cuda.is_available() else "cpu")
    told = f"{machine.get('gpu', machine['cpu'])}, {machine['cores']} cores"
    maker = Maker(ROOT, LEDGER, code_version(), told, partial(run_command, extra=extra))
    outcomes = maker.make(states)
    print(told_outcomes(outcomes, " ".join(["python -m experiments.all", *arguments])))
    if changed := quote.refresh(ROOT):
        print(f"quoted anew in {', '.join(changed)}; what is said there in words is not looked at")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def read_options(arguments: Sequence[str]) -> dict[str, str]:
    """All of ``OPTIONS``, as given or not. Raises BadInput: no option of a job changes what is committed."""
    given = dict(OPTIONS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in given or not (equals and value):
            raise BadInput(f"{argument} is no option=value of this command; {nearest(key, list(given))}")
        given[key] = value
    for key in ("plan", "check"):
        if given[key] not in ("true", "false"):
            raise BadInput(f"{key}={given[key]} must be true or false")
    if given["check"] == "true" and (given["plan"] == "true" or given["only"] or given["model"]):
        raise BadInput("check=true looks at all that is committed; give it alone")
    return given


def planned(results: Sequence[Result], extra: Sequence[str]) -> list[State]:
    """How far each is, told as it is found: the settings of a large sweep take half a minute."""
    made, version, states, seen = read_ledger(LEDGER), code_version(), [], set()
    for result in results:
        videos = videos_of(result, extra)
        states.append(state_of(result, videos, made.get(result.label), version, ROOT, seen))
        print(told_state(states[-1]), flush=True)
    return states
