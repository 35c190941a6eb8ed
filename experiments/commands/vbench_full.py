"""``python -m experiments.vbench_full``: see experiments.studies.vbench_full."""

import sys

from experiments.studies.vbench_full import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
