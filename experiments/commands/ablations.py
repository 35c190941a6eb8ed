"""``python -m experiments.ablations``: see experiments.show.ablations."""

import sys

from experiments.commands import start

MODULE = "experiments.show.ablations"

if __name__ == "__main__":
    sys.exit(start(MODULE))
