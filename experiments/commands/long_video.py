"""``python -m experiments.long_video``: see experiments.show.long_video."""

import sys

from experiments.commands import start

if __name__ == "__main__":
    sys.exit(start("experiments.show.long_video"))
