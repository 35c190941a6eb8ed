"""``python -m experiments.paper_flops``: see experiments.studies.paper_flops."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.studies.paper_flops"))
