"""``python -m experiments.floor``: see experiments.studies.floor."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.floor"

if __name__ == "__main__":
    sys.exit(start(MODULE))
