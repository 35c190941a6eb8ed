"""Run one job: ``python run.py model=magi method=flowcache_fast``; README.md and conf/ tell what can be set.

Exit codes: 0 done, 1 the run failed, 2 bad input. In a multirun (-m) a bad job stops all before any begins; once they
have begun every job runs, and the worst code counts; of jobs that a launcher runs elsewhere, the first that is bad.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool; each job sets its own number
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on, for one line here, instead of printing many

import hydra
from omegaconf import DictConfig

from experiments.job.errors import complain, stopped
from experiments.job.process import set_up

# Whatever needs torch is imported late, by a run: help and completion are there at once.
CONF = Path(__file__).with_name("conf")
_HELP = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}
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

            dry_run(config)
        else:
            from experiments.run.main_job import run_job

            run_job(config)
    except Exception as error:
        if config.debug:
            raise
        if is_launched():
            raise sendable(error) from None
        _exit_codes.append(complain("run.py", error))


def main() -> int:
    arguments = sys.argv[1:]
    try:
        if not _HELP & set(arguments):
            from experiments.job.cli import check_jobs, check_overrides
            from experiments.run.launch import launcher_name, prepare

            check_overrides(arguments)
            prepare(arguments)
            here, multirun = launcher_name(arguments) == "basic", bool(_MULTIRUN & set(arguments))
            check_jobs([a for a in arguments if not a.startswith("-")], multirun, here)
        job()
    except KeyboardInterrupt:
        _exit_codes.append(stopped("run.py"))
    except Exception as error:
        if "debug=true" in arguments:
            raise
        _exit_codes.append(complain("run.py", error))
    return max(_exit_codes)


if __name__ == "__main__":
    set_up()
    sys.exit(main())
