"""``python -m experiments.paper_flops``: see experiments.studies.paper_flops."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.paper_flops"

if __name__ == "__main__":
    sys.exit(start(MODULE))
