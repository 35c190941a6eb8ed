"""``python -m experiments.robustness``: see experiments.studies.robustness."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.robustness"

if __name__ == "__main__":
    sys.exit(start(MODULE))
