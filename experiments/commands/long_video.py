"""``python -m experiments.long_video``: see experiments.show.long_video."""

import sys

from experiments.commands import start

MODULE = "experiments.show.long_video"

if __name__ == "__main__":
    sys.exit(start(MODULE))
