"""``python -m experiments.sweep``: see experiments.run.sweep."""

import sys

from experiments.commands import start

MODULE = "experiments.run.sweep"

if __name__ == "__main__":
    sys.exit(start(MODULE))
