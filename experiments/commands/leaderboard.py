"""``python -m experiments.leaderboard``: see experiments.show.leaderboard."""

import sys

from experiments.commands import start

MODULE = "experiments.show.leaderboard"

if __name__ == "__main__":
    sys.exit(start(MODULE))
