"""``python -m experiments.vbench_full``: see experiments.studies.vbench_full."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.vbench_full"

if __name__ == "__main__":
    sys.exit(start(MODULE))
