"""``python -m experiments.calibrate``: see experiments.studies.calibrate."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.calibrate"

if __name__ == "__main__":
    sys.exit(start(MODULE))
