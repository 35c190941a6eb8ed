"""``python -m experiments.vbench_full``: see experiments.studies.vbench_full."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.studies.vbench_full"))
