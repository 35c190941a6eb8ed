"""``python -m experiments.all``: see experiments.committed.all."""

import sys

from experiments.commands import start

MODULE = "experiments.committed.all"

if __name__ == "__main__":
    sys.exit(start(MODULE))
