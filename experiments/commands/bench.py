"""``python -m experiments.bench``: see experiments.benchmarks.bench."""

import sys

from experiments.commands import start

MODULE = "experiments.benchmarks.bench"

if __name__ == "__main__":
    sys.exit(start(MODULE, explains_itself=True))
