"""``python -m experiments.soak``: see experiments.studies.soak."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.studies.soak"))
