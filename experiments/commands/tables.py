"""``python -m experiments.tables``: see experiments.show.tables."""

import sys

from experiments.commands import start

MODULE = "experiments.show.tables"

if __name__ == "__main__":
    sys.exit(start(MODULE))
