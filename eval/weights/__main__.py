"""Command line: `python -m eval.weights lpips` fetches what is missing or corrupt; `--check` only looks.

Exit codes: 0 all there and verified, 1 some are not, 2 bad arguments.
"""

import argparse
import sys

from eval.errors import MetricUnavailable
from eval.weights.lpips import SOURCES, Net, fetch_weights, load_weights, weights_path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.weights", description="Weights of the metrics.")
    parser.add_argument("metric", choices=["lpips"], help="whose weights")
    parser.add_argument("--check", action="store_true", help="verify what is there; fetch nothing")
    options = parser.parse_args(arguments)
    provided = [_provide(net, options.check) for net in SOURCES]
    return 0 if all(provided) else 1


def _provide(net: Net, check_only: bool) -> bool:
    try:
        load_weights(net)
    except MetricUnavailable as unavailable:
        print(unavailable, file=sys.stderr)
        if check_only:
            return False
        try:
            fetch_weights(net)
        except MetricUnavailable as still_unavailable:
            print(still_unavailable, file=sys.stderr)
            return False
    print(f"LPIPS ({net}): verified {weights_path(net)}")
    return True


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may not show every name
    sys.exit(main())
