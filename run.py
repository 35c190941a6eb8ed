"""Run one job: ``python run.py model=magi method=flowcache_fast``; README.md and conf/ tell what can be set.

Exit codes: 0 done, 1 the run failed, 2 bad input. In a multirun (-m) every job runs; the worst code counts.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool; each job sets its own number

import hydra
from omegaconf import DictConfig

from experiments.cli import check_overrides
from experiments.errors import BadInput, RunFailed
from experiments.fork_server import start_server

_HELP = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}
_exit_codes = [0]


@hydra.main(version_base=None, config_path="conf", config_name="config")
def job(config: DictConfig) -> None:
    try:
        if config.device == "meta":
            from experiments.dry_run import dry_run

            dry_run(config)
        else:
            if config.setting.embedded and config.device in ("auto", "cpu") and config.workers != 1:
                start_server()  # it imports for the workers while this process imports for itself

            from experiments.main_job import run_job

            run_job(config)
    except BadInput as error:
        _fail(2, str(error))
    except Exception as error:
        if config.debug:
            raise
        text = str(error) if isinstance(error, RunFailed) else f"the run failed: {type(error).__name__}: {error}"
        _fail(1, f"{text} (debug=true shows where)")


def _fail(code: int, message: str) -> None:
    print(f"run.py: {message}", file=sys.stderr)
    _exit_codes.append(code)


def main() -> int:
    try:
        if not _HELP & set(sys.argv):
            check_overrides(sys.argv[1:])
        job()
    except BadInput as error:
        _fail(2, str(error))
    return max(_exit_codes)


if __name__ == "__main__":
    sys.exit(main())
