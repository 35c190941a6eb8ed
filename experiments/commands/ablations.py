"""``python -m experiments.ablations``: see experiments.show.ablations."""

import sys

from experiments.show.ablations import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
