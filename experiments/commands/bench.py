"""``python -m experiments.bench``: see experiments.benchmarks.bench."""

import sys

from experiments.benchmarks.bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
