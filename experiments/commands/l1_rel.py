"""``python -m experiments.l1_rel``: see experiments.studies.l1_rel."""

import sys

from experiments.studies.l1_rel import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
