"""``python -m experiments.l1_rel``: see experiments.studies.l1_rel."""

import sys

from experiments.commands import start

MODULE = "experiments.studies.l1_rel"

if __name__ == "__main__":
    sys.exit(start(MODULE))
