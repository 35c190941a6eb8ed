"""``python -m experiments.figures``: see experiments.show.figures."""

import sys

from experiments.commands import start

MODULE = "experiments.show.figures"

if __name__ == "__main__":
    sys.exit(start(MODULE))
