"""``python -m experiments.soak``: see experiments.studies.soak."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.soak"

if __name__ == "__main__":
    sys.exit(start(MODULE))
