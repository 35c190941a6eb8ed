"""``python -m experiments.tables``: see experiments.show.tables."""

import sys

from experiments.show.tables import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
