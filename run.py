"""Run one job: ``python run.py model=magi method=flowcache_fast``; README.md and conf/ tell what can be set.

Exit codes: 0 done, 1 the run failed, 2 bad input. In a multirun (-m) a bad job stops all before any begins; once they
have begun every job runs, and the worst code counts; of jobs that a launcher runs elsewhere, the first that is bad.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from contextlib import redirect_stdout

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool; each job sets its own number
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on, for one line here, instead of printing many

import hydra
from omegaconf import DictConfig

from experiments.job.errors import HELP, RanksFailed, complain, stopped
from experiments.job.groups import CONF
from experiments.job.help import run_help, without_fixed_groups
from experiments.job.old_names import todays
from experiments.job.process import set_up
from experiments.job.recognise import recognised
from experiments.job.terminal import replace_what_cannot_be_shown

# Whatever needs torch is imported late, by a run: help and completion are there at once.
_COMPLETION = {"--shell-completion", "-sc"}
_ASKED_OF_HYDRA = {"--hydra-help", "--cfg", "-c", "--info", "-i", "--version"} | _COMPLETION
_MULTIRUN = {"-m", "--multirun"}
_exit_codes = [0]


@hydra.main(version_base=None, config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    from experiments.run.launch import end_with_starter, is_launched, sendable

    if is_launched():
        end_with_starter()
    try:
        if config.device == "meta":
            from experiments.run.dry_run import dry_run

            gc.enable()
            dry_run(config)
        else:
            from experiments.run.main_job import run_job

            gc.enable()
            run_job(config)
    except Exception as error:
        if config.debug:
            raise
        if is_launched():
            raise sendable(error) from None
        if isinstance(error, RanksFailed):  # the other processes are not where this one is: no further job
            raise
        _exit_codes.append(complain("run.py", error))


def completions() -> str:
    """Of the command line that a shell has in COMP_LINE, as Hydra finds them."""
    with redirect_stdout(io.StringIO()) as said:
        job()
    return without_fixed_groups(said.getvalue())


def main() -> int:
    gc.disable()  # until there is work: looking for garbage in imports takes a sixth of a short run, and finds none
    sys.argv[1:] = arguments = todays(sys.argv[1:])
    replace_what_cannot_be_shown()
    try:
        if HELP & set(arguments):
            print(run_help(__doc__, arguments))
            return 0
        if _COMPLETION & set(arguments) and any(argument.startswith("query=") for argument in arguments):
            print(completions())
            return 0
        sys.argv[1:] = arguments = recognised(arguments)
        if not _ASKED_OF_HYDRA & set(arguments):
            from experiments.job.cli import check_jobs, check_overrides
            from experiments.run.launch import launcher_name, prepare

            overrides = [argument for argument in arguments if not argument.startswith("-")]
            check_overrides(overrides)
            prepare(overrides)
            here, multirun = launcher_name(overrides) == "basic", bool(_MULTIRUN & set(arguments))
            check_jobs(overrides, multirun, here)
        job()
    except KeyboardInterrupt:
        _exit_codes.append(stopped("run.py"))
    except Exception as error:
        if "debug=true" in arguments:
            raise
        _exit_codes.append(complain("run.py", error))
    finally:
        gc.enable()
    return max(_exit_codes)


if __name__ == "__main__":
    set_up()
    sys.exit(main())
