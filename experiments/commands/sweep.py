"""``python -m experiments.sweep``: see experiments.run.sweep."""

import sys

from experiments.run.sweep import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
