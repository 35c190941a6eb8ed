"""``python -m experiments.long_video``: see experiments.show.long_video."""

import sys

from experiments.show.long_video import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
