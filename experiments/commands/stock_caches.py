"""``python -m experiments.stock_caches``: see experiments.studies.stock_caches."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.stock_caches"

if __name__ == "__main__":
    sys.exit(start(MODULE))
