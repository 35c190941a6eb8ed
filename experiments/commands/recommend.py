"""``python -m experiments.recommend``: see experiments.studies.recommend."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.recommend"

if __name__ == "__main__":
    sys.exit(start(MODULE))
