"""``python -m experiments.train_embedded``: see experiments.training.train_embedded."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.training.train_embedded"))
