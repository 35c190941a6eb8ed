"""``python -m experiments.paper_flops``: see experiments.studies.paper_flops."""

import sys

from experiments.studies.paper_flops import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
