"""``python -m experiments.soak``: see experiments.studies.soak."""

import sys

from experiments.studies.soak import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
