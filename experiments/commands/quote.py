"""``python -m experiments.quote``: see experiments.show.quote."""

import sys

from experiments.commands import start

MODULE = "experiments.show.quote"

if __name__ == "__main__":
    sys.exit(start(MODULE))
