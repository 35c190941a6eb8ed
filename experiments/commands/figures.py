"""``python -m experiments.figures``: see experiments.show.figures."""

import sys

from experiments.show.figures import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
