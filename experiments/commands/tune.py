"""``python -m experiments.tune``: see experiments.studies.tune."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.studies.tune"))
