"""``python -m experiments.train_embedded``: see experiments.training.train_embedded."""

import sys

from experiments.training.train_embedded import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
