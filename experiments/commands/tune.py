"""``python -m experiments.tune``: see experiments.studies.tune."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.tune"

if __name__ == "__main__":
    sys.exit(start(MODULE))
