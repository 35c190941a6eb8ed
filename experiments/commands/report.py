"""``python -m experiments.report``: see experiments.show.report."""

import sys

from experiments.commands import start

MODULE = "experiments.show.report"

if __name__ == "__main__":
    sys.exit(start(MODULE))
