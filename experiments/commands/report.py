"""``python -m experiments.report``: see experiments.show.report."""

import sys

from experiments.show.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
