"""``python -m experiments.train_embedded``: see experiments.training.train_embedded."""

import sys

from experiments.commands import start

MODULE = "experiments.training.train_embedded"

if __name__ == "__main__":
    sys.exit(start(MODULE))
