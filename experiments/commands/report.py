"""``python -m experiments.report``: see experiments.show.report."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.show.report"))
