"""``python -m experiments.bench``: see experiments.benchmarks.bench."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.benchmarks.bench"))
