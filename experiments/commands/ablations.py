"""``python -m experiments.ablations``: see experiments.show.ablations."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.show.ablations"))
