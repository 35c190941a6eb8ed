"""Run one job: ``python run.py model=magi method=flowcache_fast``; README.md and conf/ tell what can be set.

Exit codes: 0 done, 1 the run failed, 2 bad input.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # set again from the job; before torch starts its pool

import hydra
from omegaconf import DictConfig

from experiments.cli import check_overrides
from experiments.errors import BadInput


@hydra.main(version_base=None, config_path="conf", config_name="config")
def job(config: DictConfig) -> None:
    from experiments.main_job import run_job

    run_job(config)


def main() -> int:
    debug = "debug=true" in sys.argv
    try:
        if not {"--help", "-h", "--cfg", "-c", "--info", "-i"} & set(sys.argv):
            check_overrides(sys.argv[1:])
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors come up to here
        job()
    except BadInput as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        print(f"run.py: the run failed: {type(error).__name__}: {error} (debug=true shows where)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
